/** The settings of a generation: their values, their limits, presets, and the request made of them. */

/**
 * @typedef {import('../contract.js').Parameter} Parameter
 * @typedef {import('../contract.js').GenerateBody} GenerateBody
 * @typedef {import('../contract.js').ModelInfo} ModelInfo
 * @typedef {import('../contract.js').AudioRef} AudioRef
 * @typedef {Readonly<Record<string, number | string | boolean>>} Values
 * @typedef {{name: string, values: Values}} Preset
 * @typedef {{ref: AudioRef, label: string, seconds: number}} Clip
 * @typedef {Clip & {mode: 'append' | 'continue', from: number | null}} Base
 * @typedef {{audioPrompt: Clip | null, base: Base | null}} Attachments
 */

/** Settings that say where to and what for, not how it sounds: a preset leaves them alone. */
const NOT_IN_PRESETS = new Set(['artist', 'seed']);
const MAX_PRESETS = 50;
const MAX_PRESET_NAME = 40;

/** Presets that come with the program. Names are i18n keys. @type {readonly Preset[]} */
export const BUILT_IN = [
  { name: 'preset.sketch', values: { duration: 5, takes: 1, loop: false, top_k: 250, top_p: 0, temperature: 1, cfg_coef: 3, decoder: 'codec' } },
  { name: 'preset.faithful', values: { top_k: 150, top_p: 0, temperature: 0.9, cfg_coef: 5 } },
  { name: 'preset.adventurous', values: { top_k: 0, top_p: 0.95, temperature: 1.15, cfg_coef: 2.5 } },
  { name: 'preset.loop', values: { duration: 8, takes: 1, loop: true, top_k: 250, top_p: 0, temperature: 1, cfg_coef: 3 } },
  { name: 'preset.takes', values: { duration: 15, takes: 4, loop: false, top_k: 250, top_p: 0, temperature: 1, cfg_coef: 3 } },
];

/**
 * @param {readonly Parameter[]} parameters
 * @returns {Values}
 */
export function defaults(parameters) {
  return Object.fromEntries(parameters.map((parameter) => [parameter.name, parameter.default]));
}

/**
 * Bring any value into a parameter's type and range; what cannot be becomes the default.
 * @param {Parameter} parameter
 * @param {unknown} value
 * @returns {number | string | boolean}
 */
export function clamp(parameter, value) {
  if (parameter.type === 'boolean') return typeof value === 'boolean' ? value : parameter.default;
  if (parameter.type === 'choice') {
    return parameter.choices.includes(String(value)) ? String(value) : parameter.default;
  }
  if (parameter.type === 'string') return typeof value === 'string' ? value.slice(0, 200) : parameter.default;
  const number = typeof value === 'string' && value.trim() !== '' ? Number(value.replace(',', '.')) : value;
  if (typeof number !== 'number' || !Number.isFinite(number)) return parameter.default;
  const held = Math.min(parameter.maximum ?? number, Math.max(parameter.minimum ?? number, number));
  if (parameter.type === 'integer') return Math.round(held);
  // Two decimals are finer than any slider's step, and keep 0.1 + 0.2 out of the file's JSON.
  return Math.round(held * 100) / 100;
}

/**
 * Values for every parameter out of anything: a saved state, a track's JSON, a preset.
 * @param {readonly Parameter[]} parameters
 * @param {unknown} raw
 * @param {Values} [base] what stands where `raw` says nothing
 * @returns {Values}
 */
export function complete(parameters, raw, base = defaults(parameters)) {
  const given = /** @type {Record<string, unknown>} */ (raw && typeof raw === 'object' ? raw : {});
  return Object.fromEntries(
    parameters.map((parameter) => {
      const { name } = parameter;
      return [name, Object.hasOwn(given, name) ? clamp(parameter, given[name]) : (base[name] ?? parameter.default)];
    }),
  );
}

/** Top P over 0 makes the model ignore Top K. @param {Values} values */
export const topKIgnored = (values) => Number(values.top_p) > 0;

/**
 * The body of a generate request.
 * @param {string} prompt
 * @param {Values} values
 * @param {Attachments} attachments
 * @param {Partial<Pick<ModelInfo, 'melody' | 'diffusion'>>} [model] the chosen one: what it cannot do is left out
 * @returns {GenerateBody}
 */
export function request(prompt, values, attachments, model = {}) {
  const { audioPrompt, base } = attachments;
  return /** @type {GenerateBody} */ ({
    kind: 'generate',
    prompt: prompt.trim(),
    ...values,
    // What goes on from a clip cannot lead back to its start: the switch is off and says so.
    loop: values.loop === true && !base,
    decoder: model.diffusion ? values.decoder : 'codec',
    audio_prompt: model.melody && audioPrompt ? audioPrompt.ref : null,
    continuation: base ? { ...base.ref, mode: base.mode, from: base.from } : null,
  });
}

/**
 * Whether the values are still those that the preset set.
 * @param {readonly Parameter[]} parameters
 * @param {Preset} preset
 * @param {Values} values
 */
export function follows(parameters, preset, values) {
  const set = complete(parameters, preset.values, values);
  return parameters.every(({ name }) => values[name] === set[name]);
}

/**
 * @param {readonly Parameter[]} parameters
 * @param {unknown} raw what localStorage gave
 * @returns {Preset[]}
 */
export function readPresets(parameters, raw) {
  if (!Array.isArray(raw)) return [];
  return raw
    .filter((preset) => preset && typeof preset.name === 'string' && preset.name.trim() && preset.values)
    .slice(0, MAX_PRESETS)
    .map((preset) => ({
      name: preset.name.trim().slice(0, MAX_PRESET_NAME),
      values: kept(complete(parameters, preset.values)),
    }));
}

/** @param {Values} values @returns {Values} */
function kept(values) {
  return Object.fromEntries(Object.entries(values).filter(([name]) => !NOT_IN_PRESETS.has(name)));
}

/**
 * @param {readonly Preset[]} presets
 * @param {string} name
 * @param {Values} values
 * @returns {Preset[]} with this one first; the same name is replaced
 */
export function savePreset(presets, name, values) {
  const short = name.trim().slice(0, MAX_PRESET_NAME);
  if (!short) return [...presets];
  return [{ name: short, values: kept(values) }, ...presets.filter((preset) => preset.name !== short)].slice(0, MAX_PRESETS);
}
