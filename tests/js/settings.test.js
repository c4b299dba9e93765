import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import * as settings from '../../static/js/models/settings.js';

/** @type {import('../../static/js/contract.js').Facts} */
const facts = JSON.parse(readFileSync(new URL('../golden/page_facts.json', import.meta.url), 'utf8'));
const { parameters } = facts;
/** @param {string} name */
const parameter = (name) => {
  const found = parameters.find((item) => item.name === name);
  assert.ok(found, `the contract has ${name}`);
  return found;
};
const none = { audioPrompt: null, base: null };

test('every value is held in the contract\'s range and type', () => {
  assert.equal(settings.clamp(parameter('duration'), 1e9), 300);
  assert.equal(settings.clamp(parameter('duration'), '-4'), 1);
  assert.equal(settings.clamp(parameter('duration'), '12,5'), 12.5);
  assert.equal(settings.clamp(parameter('top_k'), 12.7), 13);
  assert.equal(settings.clamp(parameter('top_p'), 0.1 + 0.2), 0.3);
  assert.equal(settings.clamp(parameter('format'), 'ogg'), 'wav');
  assert.equal(settings.clamp(parameter('format'), 'mp3'), 'mp3');
});

test('what cannot be a value becomes the default', () => {
  for (const nonsense of [null, undefined, '', 'many', Number.NaN, Infinity, {}, []]) {
    assert.equal(settings.clamp(parameter('temperature'), nonsense), parameter('temperature').default);
  }
});

test('values are complete whatever was kept, and carry nothing else', () => {
  const all = settings.complete(parameters, { duration: 20, evil: 1 });
  assert.deepEqual(Object.keys(all).sort(), parameters.map((item) => item.name).sort());
  assert.equal(all.duration, 20);
  assert.equal(all.takes, 1);
  assert.deepEqual(settings.complete(parameters, 'nonsense'), settings.defaults(parameters));
});

test('a request has every parameter, and the clips that were attached', () => {
  const values = settings.complete(parameters, { duration: 7 });
  const base = { ref: { track: 'T' }, label: 'T', seconds: 9, mode: /** @type {const} */ ('append'), from: 3 };
  const audioPrompt = { ref: { upload: 'u' }, label: 'hum.wav', seconds: 4 };
  const made = settings.request('  piano ', values, { audioPrompt, base }, { melody: true });
  assert.equal(made.prompt, 'piano');
  assert.equal(made.duration, 7);
  assert.deepEqual(made.continuation, { track: 'T', mode: 'append', from: 3 });
  assert.deepEqual(made.audio_prompt, { upload: 'u' });
});

test('an audio prompt is not sent to a model that takes none', () => {
  const audioPrompt = { ref: { upload: 'u' }, label: 'hum.wav', seconds: 4 };
  assert.equal(settings.request('x', settings.defaults(parameters), { ...none, audioPrompt }, { melody: false }).audio_prompt, null);
});

test('a decoder is only asked of a model that has it, and the choice is kept for one that does', () => {
  const values = settings.complete(parameters, { decoder: 'diffusion' });
  const diffusion = { state: 'ready', licence: 'CC-BY-NC 4.0', missing: [] };
  assert.equal(settings.request('x', values, none, { diffusion }).decoder, 'diffusion');
  assert.equal(settings.request('x', values, none, { diffusion: null }).decoder, 'codec');
  assert.equal(settings.request('x', values, none).decoder, 'codec');
  assert.equal(settings.savePreset([], 'mine', values)[0]?.values.decoder, 'diffusion');
});

test('a Top P over zero switches Top K off', () => {
  assert.equal(settings.topKIgnored({ top_p: 0 }), false);
  assert.equal(settings.topKIgnored({ top_p: 0.01 }), true);
});

test('presets that come with the program are within the contract', () => {
  for (const preset of settings.BUILT_IN) {
    for (const [name, value] of Object.entries(preset.values)) assert.equal(settings.clamp(parameter(name), value), value, `${preset.name} ${name}`);
  }
});

test('a preset keeps how it sounds and not the seed or the artist; the same name replaces', () => {
  const values = settings.complete(parameters, { duration: 42, seed: 7, artist: 'A' });
  const one = settings.savePreset([], ' mine ', values);
  assert.deepEqual([one[0]?.name, one[0]?.values.duration, one[0]?.values.seed, one[0]?.values.artist], ['mine', 42, undefined, undefined]);
  const two = settings.savePreset(one, 'mine', settings.complete(parameters, { duration: 5 }));
  assert.deepEqual(two.map((preset) => preset.values.duration), [5]);
  assert.deepEqual(settings.savePreset(two, '  ', values), two);
});

test('a preset is followed until one of its values is changed; the seed and the artist are none of them', () => {
  const [preset] = settings.savePreset([], 'mine', settings.complete(parameters, { duration: 42, temperature: 1.2 }));
  assert.ok(preset);
  for (const chosen of [preset, ...settings.BUILT_IN]) {
    const values = settings.complete(parameters, chosen.values);
    assert.ok(settings.follows(parameters, chosen, values), chosen.name);
    assert.ok(settings.follows(parameters, chosen, { ...values, seed: 7, artist: 'A' }), chosen.name);
    assert.ok(!settings.follows(parameters, chosen, { ...values, temperature: 0.3 }), chosen.name);
  }
});

test('kept presets that were tampered with are put right or left out', () => {
  const read = settings.readPresets(parameters, [null, { name: '' }, { name: 'x', values: { duration: 1e9 } }, 'y']);
  assert.deepEqual(read.map((preset) => [preset.name, preset.values.duration]), [['x', 300]]);
  assert.deepEqual(settings.readPresets(parameters, { a: 1 }), []);
});

test('a switch is on or off and nothing else, and what goes on from a clip is no loop', () => {
  assert.equal(settings.clamp(parameter('loop'), true), true);
  for (const nonsense of ['true', 1, null]) assert.equal(settings.clamp(parameter('loop'), nonsense), false);
  const values = settings.complete(parameters, { loop: true });
  assert.equal(settings.request('x', values, none).loop, true);
  const base = { ref: { track: 'T' }, label: 'T', seconds: 9, mode: /** @type {const} */ ('continue'), from: null };
  assert.equal(settings.request('x', values, { ...none, base }).loop, false);
});
