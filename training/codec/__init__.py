"""The codec's codebooks: which code means which sound, and the waveforms behind the codes."""
