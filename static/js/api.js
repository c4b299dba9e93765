/** The one place that talks to the server: HTTP envelopes in, typed errors out, and the event connection. */

/**
 * @typedef {import('./contract.js').Job} Job
 * @typedef {import('./contract.js').Body} Body
 * @typedef {import('./contract.js').Track} Track
 * @typedef {import('./contract.js').ModelInfo} ModelInfo
 * @typedef {import('./contract.js').Health} Health
 * @typedef {import('./contract.js').Upload} Upload
 * @typedef {import('./contract.js').Hello} Hello
 * @typedef {import('./contract.js').Estimate} Estimate
 * @typedef {import('./contract.js').LibraryChange} LibraryChange
 * @typedef {import('./contract.js').StudioError} StudioError
 */

/** A failure the server explained, or that the connection gave. */
export class ApiError extends Error {
  /**
   * @param {StudioError} error
   * @param {number} status 0 when the server was not reached
   */
  constructor(error, status) {
    super(error.message);
    this.error = error;
    this.status = status;
  }
}

/** @param {unknown} problem @returns {StudioError} */
export function asError(problem) {
  if (problem instanceof ApiError) return problem.error;
  return { code: 'internal', message: problem instanceof Error ? problem.message : String(problem) };
}

/**
 * @param {string} path
 * @param {{method?: string, body?: unknown, form?: FormData, signal?: AbortSignal}} [options]
 * @returns {Promise<any>} the envelope of success
 * @throws {ApiError}
 */
async function call(path, { method = 'GET', body, form, signal } = {}) {
  /** @type {Response} */
  let answer;
  try {
    answer = await fetch(path, {
      method,
      ...(signal ? { signal } : {}),
      ...(form ? { body: form } : {}),
      ...(body === undefined ? {} : { body: JSON.stringify(body), headers: { 'Content-Type': 'application/json' } }),
    });
  } catch (problem) {
    if (signal?.aborted) throw problem;
    throw new ApiError({ code: 'unreachable', message: 'the server does not answer' }, 0);
  }
  return opened(answer.status, await answer.text());
}

/**
 * @param {number} status
 * @param {string} text
 */
function opened(status, text) {
  /** @type {any} */
  let envelope;
  try {
    envelope = JSON.parse(text);
  } catch {
    throw new ApiError({ code: 'internal', message: `the server answered ${status} without JSON` }, status);
  }
  if (envelope?.ok !== true) {
    throw new ApiError(envelope?.error ?? { code: 'internal', message: `the server answered ${status}` }, status);
  }
  return envelope;
}

const encoded = encodeURIComponent;

/** @param {string} name */
const trackPath = (name) => `/api/tracks/${encoded(name)}`;

/** @returns {Promise<Health>} */
export const health = async () => (await call('/api/health')).health;

/** @returns {Promise<ModelInfo[]>} */
export const models = async () => (await call('/api/models')).models;

/** @param {string} id @param {string} clientId @returns {Promise<Job>} */
export const loadModel = async (id, clientId) =>
  (await call(`/api/models/${encoded(id)}/load`, { method: 'POST', body: { client_id: clientId } })).job;

/** @param {string} id */
export const unloadModel = (id) => call(`/api/models/${encoded(id)}/load`, { method: 'DELETE' });

/** @returns {Promise<Job[]>} */
export const jobs = async () => (await call('/api/jobs')).jobs;

/** @param {Body} body @param {string} clientId @returns {Promise<Job>} */
export const submit = async (body, clientId) =>
  (await call('/api/jobs', { method: 'POST', body: { ...body, client_id: clientId } })).job;

/** @param {string} id @param {boolean} keep save what was made so far @returns {Promise<Job>} */
export const cancel = async (id, keep) => (await call(`/api/jobs/${encoded(id)}`, { method: 'DELETE', body: { keep } })).job;

/** @param {string} id */
export const liveAudioUrl = (id) => `/api/jobs/${encoded(id)}/audio`;

/** @param {Body} body @param {AbortSignal} signal @returns {Promise<Estimate>} */
export const estimate = async (body, signal) =>
  (await call('/api/estimate', { method: 'POST', body: { ...body, client_id: 'estimate' }, signal })).estimate;

/** @param {string} query @param {AbortSignal} [signal] @returns {Promise<{tracks: Track[], next_cursor: string, total: number}>} */
export const tracks = (query, signal) => call(`/api/tracks?${query}`, signal ? { signal } : {});

/** @param {string} name @returns {Promise<Track>} */
export const track = async (name) => (await call(trackPath(name))).track;

/** @param {string} name @param {{favourite?: boolean, locked?: boolean}} change @returns {Promise<Track>} */
export const patch = async (name, change) => (await call(trackPath(name), { method: 'PATCH', body: change })).track;

/** @param {string} name */
export const remove = (name) => call(trackPath(name), { method: 'DELETE' });

/** @returns {Promise<{removed: number, spared: number}>} */
export const removeAll = () => call('/api/tracks', { method: 'DELETE', body: { confirm: true } });

/** @param {string} name @param {number} bins @param {AbortSignal} [signal] @returns {Promise<[number, number][]>} */
export const peaks = async (name, bins, signal) =>
  (await call(`${trackPath(name)}/peaks?bins=${bins}`, signal ? { signal } : {})).peaks;

/** @param {string} name @param {string} stem @param {number} bins @param {AbortSignal} signal @returns {Promise<[number, number][]>} */
export const stemPeaks = async (name, stem, bins, signal) =>
  (await call(`${trackPath(name)}/peaks?bins=${bins}&stem=${encoded(stem)}`, { signal })).peaks;

/** @param {string} name @param {string} stem */
export const stemUrl = (name, stem) => `${trackPath(name)}/stems/${encoded(stem)}`;

/** @param {string} name @param {readonly string[]} only none is all */
export const stemsZipUrl = (name, only) => `${trackPath(name)}/stems.zip${only.length > 0 ? `?only=${only.map(encoded).join()}` : ''}`;

/** @param {string} name @param {string} stem */
export const midiUrl = (name, stem) => `${stemUrl(name, stem)}/midi`;

/**
 * The notes of a stem; the first time the server has to listen to it.
 * @param {string} name
 * @param {string} stem
 * @param {AbortSignal} signal
 * @returns {Promise<{seconds: number, notes: [number, number, number, number][]}>}
 */
export const notes = async (name, stem, signal) => (await call(midiUrl(name, stem), { method: 'POST', signal })).notes;

/** @returns {Promise<import('./contract.js').SeparatorInfo[]>} */
export const separators = async () => (await call('/api/separators')).separators;

/**
 * Save a rendered mix as a track of its own.
 * @param {string} name of the track whose stems were mixed
 * @param {object} mix the contract's Mix
 * @param {Blob} file
 * @param {AbortSignal} signal
 * @returns {Promise<Track>}
 */
export async function mixdown(name, mix, file, signal) {
  const form = new FormData();
  form.append('mix', JSON.stringify(mix));
  form.append('file', file, `${name}.wav`);
  return (await call(`${trackPath(name)}/mixdown`, { method: 'POST', form, signal })).track;
}

/**
 * @param {string} name
 * @param {{format?: string, sample_rate?: string}} [as] another format than the file's own
 */
export function audioUrl(name, as = {}) {
  const asked = new URLSearchParams(as).toString();
  return `${trackPath(name)}/audio${asked ? `?${asked}` : ''}`;
}

/**
 * Send a file; fetch cannot tell how much has gone out, so this is the one XMLHttpRequest.
 * @param {File} file
 * @param {(share: number) => void} progress
 * @param {AbortSignal} signal
 * @returns {Promise<Upload>}
 */
export function upload(file, progress, signal) {
  return new Promise((resolve, reject) => {
    const form = new FormData();
    form.append('file', file, file.name);
    const sending = new XMLHttpRequest();
    sending.open('POST', '/api/uploads');
    sending.upload.addEventListener('progress', (event) => {
      if (event.lengthComputable) progress(event.loaded / event.total);
    });
    sending.addEventListener('load', () => {
      try {
        resolve(opened(sending.status, sending.responseText).upload);
      } catch (problem) {
        reject(problem);
      }
    });
    sending.addEventListener('error', () =>
      reject(new ApiError({ code: 'unreachable', message: 'the server does not answer' }, 0)),
    );
    sending.addEventListener('abort', () => reject(new DOMException('cancelled', 'AbortError')));
    signal.addEventListener('abort', () => sending.abort());
    sending.send(form);
  });
}

/**
 * @typedef {object} Socket what we use of Socket.IO's client
 * @property {(name: string, listen: (payload: any) => void) => unknown} on
 * @property {() => unknown} connect
 * @property {() => unknown} close
 *
 * @typedef {object} Listeners
 * @property {(hello: Hello) => void} hello
 * @property {(job: Job) => void} job
 * @property {(change: LibraryChange) => void} library
 * @property {(connected: boolean) => void} connection
 * @property {() => void} outdated
 */

/**
 * Listen to the server's events. Reconnection is the client's; every new connection starts with a `hello` that
 * says all, so nothing needs to be remembered about what was missed.
 * @param {() => Socket} open
 * @param {number} protocol the version this page speaks
 * @param {Listeners} listeners
 * @returns {Pick<Socket, 'connect' | 'close'>}
 */
export function listen(open, protocol, listeners) {
  const socket = open();
  socket.on('connect', () => listeners.connection(true));
  socket.on('disconnect', () => listeners.connection(false));
  socket.on('connect_error', () => listeners.connection(false));
  socket.on('hello', (/** @type {Hello} */ hello) => {
    if (hello.protocol === protocol) listeners.hello(hello);
    else listeners.outdated();
  });
  socket.on('job', listeners.job);
  socket.on('library', listeners.library);
  return socket;
}
