/**
 * The contract as the page sees it: the facts the server rendered into the page, and the types of what crosses
 * the wire (modules/contract.py is their one description).
 */

/**
 * @typedef {object} Parameter
 * @property {string} name
 * @property {'integer' | 'number' | 'string' | 'choice' | 'boolean'} type
 * @property {number | string | boolean} default
 * @property {number | null} minimum
 * @property {number | null} maximum
 * @property {number | null} step
 * @property {string[]} choices
 * @property {string} group
 * @property {string} widget
 *
 * @typedef {object} Facts
 * @property {number} protocol
 * @property {Parameter[]} parameters
 * @property {{prompt_chars: number, artist_chars: number, clip_s: number, upload_mb: number, seed: number}} limits
 * @property {string[]} stems
 * @property {string[]} final
 * @property {string[]} error_codes
 *
 * @typedef {'queued' | 'running' | 'done' | 'failed' | 'cancelled' | 'interrupted'} JobStatus
 * @typedef {{code: string, field?: string | null, message: string, details?: Record<string, any>}} StudioError
 * @typedef {{upload?: string | null, track?: string | null}} AudioRef
 * @typedef {AudioRef & {mode: 'append' | 'continue', from: number | null}} Continuation
 *
 * @typedef {object} GenerateBody
 * @property {'generate'} kind
 * @property {string} prompt
 * @property {string} model
 * @property {number} duration
 * @property {number} top_k
 * @property {number} top_p
 * @property {number} temperature
 * @property {number} cfg_coef
 * @property {string} decoder
 * @property {number} seed
 * @property {number} takes
 * @property {boolean} loop
 * @property {string} artist
 * @property {string} format
 * @property {string} sample_rate
 * @property {string} stems
 * @property {AudioRef | null} audio_prompt
 * @property {Continuation | null} continuation
 *
 * @typedef {{kind: 'split', track?: string | null, upload?: string | null, stems: string, separator?: string}} SplitBody
 * @typedef {GenerateBody | SplitBody} Body
 *
 * @typedef {object} Job
 * @property {string} id
 * @property {string} client_id
 * @property {number} rev
 * @property {'generate' | 'split' | 'load'} kind
 * @property {JobStatus} status
 * @property {string} phase
 * @property {number} done
 * @property {number} total
 * @property {number | null} rate
 * @property {number | null} eta_s
 * @property {number} position
 * @property {string} created_at
 * @property {Record<string, any>} request
 * @property {string | null} track
 * @property {string[]} tracks
 * @property {boolean} live
 * @property {number} live_s
 * @property {string[]} unknown_words
 * @property {StudioError | null} error
 *
 * @typedef {{kind: 'upload' | 'track', name: string, seconds: number, mode?: string | null, from_s?: number | null}} Source
 *
 * @typedef {{start_s: number, fade_s: number, beats: number | null, bpm: number | null, level_jump_db: number, spectrum_jump_db: number}} Loop
 *
 * @typedef {object} Track
 * @property {string} name
 * @property {string} file
 * @property {string} created_at
 * @property {string} prompt
 * @property {string} model
 * @property {Record<string, any>} asked
 * @property {Record<string, any>} used
 * @property {number} seed
 * @property {number} take
 * @property {'wav' | 'flac' | 'mp3'} format
 * @property {number} sample_rate_hz
 * @property {number} channels
 * @property {number} duration_s
 * @property {number} bytes
 * @property {Source | null} continuation
 * @property {Source | null} audio_prompt
 * @property {string | null} parent
 * @property {Loop | null} loop the file plays round and round
 * @property {string[]} post
 * @property {{integrated_lufs: number | null, peak_dbfs: number | null}} loudness
 * @property {{backend: string, precision: string, device: string, why?: string} | null} engine
 * @property {Record<string, number>} timings_s
 * @property {boolean} kept_early
 * @property {boolean} favourite
 * @property {boolean} locked
 * @property {boolean} has_tokens
 * @property {Record<string, string>} stems
 *
 * @typedef {object} SeparatorInfo
 * @property {string} id
 * @property {string} title
 * @property {string[]} stems
 * @property {string} licence
 * @property {boolean} sketch
 * @property {string} state
 * @property {number} download_bytes
 * @property {string[]} missing
 *
 * @typedef {object} ModelInfo
 * @property {string} id
 * @property {string} title
 * @property {string | null} repo
 * @property {number | null} params_m
 * @property {number} channels
 * @property {boolean} melody
 * @property {string} licence
 * @property {boolean} sketch
 * @property {'ready' | 'downloadable' | 'missing' | 'broken'} state
 * @property {number} download_bytes
 * @property {string[]} missing
 * @property {string} where
 * @property {boolean} loaded
 * @property {string} problem
 * @property {{state: string, licence: string, missing: string[]} | null} diffusion
 *
 * @typedef {object} Health
 * @property {string} version
 * @property {number} protocol
 * @property {string} device
 * @property {string} device_name
 * @property {'cold' | 'loading' | 'ready' | 'failed'} stack
 * @property {string} stack_problem
 * @property {string | null} model
 * @property {'none' | 'loading' | 'loaded'} model_state
 * @property {boolean} offline
 * @property {Record<string, number>} queue
 *
 * @typedef {{id: string, name: string, seconds: number, sample_rate_hz: number, channels: number}} Upload
 * @typedef {{added?: Track[], changed?: Track[], removed?: string[]}} LibraryChange
 * @typedef {{protocol: number, version: string, jobs: Job[], tracks: number, models: ModelInfo[]}} Hello
 * @typedef {{model: string, precision: string}} Fit what would fit the memory
 * @typedef {object} Estimate
 * @property {number} seconds
 * @property {boolean} fits
 * @property {number} [needs_bytes]
 * @property {number} [free_bytes]
 * @property {number} [first_sound_s]
 * @property {Fit[]} [fits_with]
 */

/**
 * The facts block of the page.
 * @param {Document} page
 * @returns {Facts}
 */
export function readFacts(page) {
  const block = page.getElementById('facts');
  if (!block?.textContent) throw new Error('the page carries no facts block');
  return JSON.parse(block.textContent);
}

/**
 * @param {Document} page
 * @returns {string} the nonce of this page's Content-Security-Policy, for the one library that makes a <style>
 */
export function styleNonce(page) {
  return page.querySelector('meta[name="style-nonce"]')?.getAttribute('content') ?? '';
}
