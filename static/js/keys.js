/** The keyboard map: which key means what, apart from what it does. */

/**
 * @typedef {{name: 'play' | 'loop' | 'prompt' | 'help' | 'mute'} | {name: 'seek', seconds: number} | {name: 'solo', stem: number}} Command
 * @typedef {{key: string, ctrlKey?: boolean, metaKey?: boolean, altKey?: boolean, shiftKey?: boolean}} Pressed
 */

/** As shown in the dialog: [keys, i18n key of what they do]. @type {readonly [string[], string][]} */
export const SHOWN = [
  [['Space'], 'keys.play'],
  [['←', '→'], 'keys.seek'],
  [['Shift', '←', '→'], 'keys.seekFine'],
  [['L'], 'keys.loop'],
  [['1', '…', '9'], 'keys.solo'],
  [['M'], 'keys.mute'],
  [['/'], 'keys.prompt'],
  [['Enter'], 'keys.send'],
  [['Shift', 'Enter'], 'keys.newline'],
  [['Esc'], 'keys.close'],
  [['?'], 'keys.help'],
];

/**
 * Letters are taken by the Latin key too, since the same keys lie under another alphabet's letters.
 * @param {Pressed & {code?: string}} event
 * @returns {Command | null}
 */
export function command(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return null;
  const step = event.shiftKey ? 1 : 5;
  if (event.key === '?') return { name: 'help' };
  // The key with the slash lies under a full stop in Russian.
  if (event.key === '/' || (event.key === '.' && event.code === 'Slash')) return { name: 'prompt' };
  if (/^[1-9]$/.test(event.key)) return { name: 'solo', stem: Number(event.key) };
  switch (event.code ?? event.key) {
    case 'Space':
      return { name: 'play' };
    case 'ArrowLeft':
      return { name: 'seek', seconds: -step };
    case 'ArrowRight':
      return { name: 'seek', seconds: step };
    case 'KeyL':
      return { name: 'loop' };
    case 'KeyM':
      return { name: 'mute' };
    default:
      return null;
  }
}
