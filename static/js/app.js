/**
 * What every view is given.
 *
 * @typedef {object} App
 * @property {import('./store.js').Store} store
 * @property {import('./audio/player.js').Player} player
 * @property {import('./live.js').Live} live
 * @property {import('./actions.js').Actions} actions
 * @property {import('./contract.js').Facts} facts
 * @property {import('./i18n.js').Words} words
 * @property {string} nonce
 * @property {Tell} tell
 * @property {EventTarget} commands every keyboard command, before the page acts on it: 'solo' (detail: 1..9), 'seek' (detail: seconds) ...; a view that takes one prevents its default
 * @property {() => void} toPrompt the focus goes to the prompt, and on a small screen the card out of its way
 * @property {Dialogs} dialogs
 *
 * @typedef {(text: string, options?: {error?: boolean, action?: {label: string, press: () => void}}) => void} Tell
 *
 * @typedef {object} Dialogs the questions, so that views need not know each other
 * @property {() => void} models
 * @property {(pick?: (track: import('./contract.js').Track) => void) => void} library
 * @property {() => void} clear
 * @property {() => void} keys
 * @property {(file: File) => void} dropped
 * @property {(track: import('./contract.js').Track) => void} extend
 * @property {(track: import('./contract.js').Track) => void} remove
 * @property {(track: import('./contract.js').Track) => void} download
 * @property {(track: import('./contract.js').Track) => void} split
 * @property {(file: File) => Promise<import('./contract.js').Upload | null>} upload shows its progress
 */

export {};
