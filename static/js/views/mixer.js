/** The mixer: the stems of the card's track, heard together, balanced, and taken elsewhere. */

import * as api from '../api.js';
import { Disposer, button, el, icon, setAttrs } from '../ui/dom.js';
import { clock, fineClock } from '../format.js';
import { MixEngine } from '../mixer/engine.js';
import { StemSource } from '../mixer/source.js';
import { askMixdown, askZip } from '../mixer/export.js';
import { changed, decibels, isNeutral, stripsFor, LOWEST_DB } from '../mixer/law.js';
import { drawRuler } from '../mixer/draw.js';
import { strip } from '../mixer/strip.js';

/**
 * @typedef {import('../app.js').App} App
 * @typedef {import('../contract.js').Track} Track
 * @typedef {import('../mixer/law.js').Strips} Strips
 * @typedef {{start: number, end: number}} Stretch seconds
 */

const BINS = 800;
/** A drag on the ruler shorter than this is a click: it seeks. */
const LOOP_LEAST_S = 0.1;
const KEPT = 'studio.mix.';
/** The order of a mix, from the front of the stage to the back. */
const ORDER = ['vocals', 'drums', 'bass', 'guitar', 'piano', 'other'];

/** @param {Track} track */
const stemNames = (track) => Object.keys(track.stems).sort((a, b) => ORDER.indexOf(a) - ORDER.indexOf(b));

/** @type {import('./card.js').StemsView} */
export function mixerView(host, first, app) {
  let names = '';
  let parts = new Disposer();
  const show = (/** @type {Track} */ track) => {
    const now = stemNames(track).join();
    if (now === names) return;
    names = now;
    parts.dispose();
    parts = new Disposer();
    host.hidden = now === '';
    host.replaceChildren();
    if (now !== '') mixer(host, track, app, parts);
  };
  // The card shows the host once this returns: a track without stems hides it after that.
  queueMicrotask(() => (host.hidden = names === ''));
  show(first);
  return { update: show, dispose: () => parts.dispose() };
}

/**
 * @param {HTMLElement} host
 * @param {Track} track
 * @param {App} app
 * @param {Disposer} parts
 */
function mixer(host, track, app, parts) {
  const { words, player } = app;
  const { t } = words;
  const names = stemNames(track);
  const desk = new Desk(app, track, names, parts);
  /** @type {Map<string, import('../mixer/strip.js').StripPart>} */
  const rows = new Map();
  /** @type {HTMLElement[]} */
  const heads = [];
  const place = (/** @type {HTMLElement} */ wave) => {
    const head = el('span', { class: 'playhead' });
    wave.append(head);
    heads.push(head);
    seekBy(wave, (share) => desk.seek(share * desk.seconds), parts);
  };
  for (const name of names) {
    const row = strip({ app, track, name, change: (change) => desk.change(name, change), place });
    rows.set(name, row);
    parts.add(() => row.dispose());
  }
  const top = transport(desk, app, parts);
  const ruler = rulerPart(desk, app, place, parts);
  const reset = button({ label: t('mixer.reset'), kind: 'quiet', press: () => desk.setAll(stripsFor({}, names)) });
  const actions = el(
    'div',
    { class: 'mixer-actions' },
    button({ label: t('mixer.mixdown'), icon: 'download', press: () => void desk.mixdown() }),
    button({ label: t('mixer.zip'), icon: 'library', press: () => void askZip(app, track) }),
  );
  host.replaceChildren(el('div', { class: 'section-head' }, el('h3', { class: 'mixer-title', text: t('card.stems') }), reset), top.element, el('div', { class: 'strips' }, ruler.element, ...[...rows.values()].map((row) => row.element)), actions);

  const showStrips = () => {
    for (const row of rows.values()) row.show(desk.strips);
    reset.disabled = isNeutral(desk.strips);
  };
  const showState = () => {
    top.show();
    ruler.repaint();
  };
  desk.addEventListener('strips', showStrips, { signal: parts.signal });
  desk.addEventListener('change', showState, { signal: parts.signal });
  showStrips();
  showState();
  void drawWaves(app, track, rows, parts);
  let [before, wide] = [-1, 0];
  parts.everyFrame(() => {
    const { time, engine } = desk;
    for (const [name, row] of rows) row.level(engine?.level(name) ?? 0);
    top.level(engine?.level() ?? 0);
    const width = host.clientWidth;
    if (Math.abs(time - before) < 0.004 && width === wide) return;
    [before, wide] = [time, width];
    top.time(time);
    for (const head of heads) head.style.transform = `translateX(${(time / desk.seconds) * (head.parentElement?.clientWidth ?? 0)}px)`;
  });
  commands(app, host, desk, names, rows, parts);
  // One thing sounds at a time.
  player.addEventListener('change', () => (player.playing ? desk.yield() : desk.setVolume(player.volume)), { signal: parts.signal });
  const themes = new MutationObserver(() => {
    for (const row of rows.values()) row.repaint();
    ruler.repaint();
  });
  themes.observe(document.documentElement, { attributeFilter: ['data-theme'] });
  parts.add(() => themes.disconnect());
}

/**
 * @param {App} app
 * @param {Track} track
 * @param {ReadonlyMap<string, import('../mixer/strip.js').StripPart>} rows
 * @param {Disposer} parts
 */
async function drawWaves(app, track, rows, parts) {
  try {
    const all = await Promise.all([...rows].map(async ([name, row]) => /** @type {const} */ ([row, await api.stemPeaks(track.name, name, BINS, parts.signal)])));
    const loudest = all.flatMap(([, peaks]) => peaks).reduce((most, [low, high]) => Math.max(most, high, -low), 0);
    for (const [row, peaks] of all) row.wave(peaks, loudest);
  } catch (problem) {
    if (!parts.signal.aborted) app.actions.report(problem, () => void drawWaves(app, track, rows, parts));
  }
}

/** What the rows and the transport share: the mix, where it stands, and the engine once something sounds. */
class Desk extends EventTarget {
  /**
   * @param {App} app
   * @param {Track} track
   * @param {readonly string[]} names
   * @param {Disposer} parts
   */
  constructor(app, track, names, parts) {
    super();
    this.app = app;
    this.track = track;
    this.parts = parts;
    this.sources = new Map(names.map((name) => [name, new StemSource(api.stemUrl(track.name, name))]));
    /** @type {Strips} */
    this.strips = stripsFor(restore(track.name), names);
    /** @type {MixEngine | null} */
    this.engine = null;
    /** @type {Promise<MixEngine> | null} */
    this.opening = null;
    /** @type {Stretch | null} seconds */
    this.loop = null;
    this.looping = false;
    this.rest = 0;
    /** The keys go to what was used last: the mixer or the player. */
    this.armed = false;
    parts.add(() => {
      this.engine?.dispose();
      app.player.setAside(false);
    });
  }

  get seconds() {
    return this.engine?.seconds ?? Math.max(0.01, this.track.duration_s);
  }

  get time() {
    return this.engine?.time ?? this.rest;
  }

  get playing() {
    return this.engine?.playing ?? false;
  }

  get waiting() {
    return this.opening !== null && this.engine === null ? true : (this.engine?.waiting ?? false);
  }

  tell() {
    this.dispatchEvent(new Event('change'));
  }

  // ---------------------------------------------------------------------------------------------- the mix
  /** @param {string} name @param {Partial<import('../mixer/law.js').Strip>} change */
  change(name, change) {
    this.setAll(changed(this.strips, name, change));
  }

  /** @param {Strips} strips */
  setAll(strips) {
    this.strips = strips;
    this.engine?.setStrips(strips);
    keep(this.track.name, strips);
    this.dispatchEvent(new Event('strips'));
  }

  // ------------------------------------------------------------------------------------------- transport
  /** @returns {Promise<MixEngine>} */
  open() {
    this.opening ??= this.connect();
    this.opening.catch(() => {
      this.opening = null; // the next press tries again
    });
    return this.opening;
  }

  async connect() {
    const layouts = await Promise.all([...this.sources.values()].map((source) => source.layout(this.parts.signal)));
    const frames = Math.max(...layouts.map((one) => one.frames));
    const layout = { .../** @type {import('../mixer/wav.js').Layout} */ (layouts[0]), frames };
    const engine = new MixEngine(this.app.player.context(layout.sampleRateHz), this.sources, layout, this.strips);
    if (this.parts.signal.aborted) {
      engine.dispose();
      throw new DOMException('gone', 'AbortError');
    }
    this.layout = layout;
    this.engine = engine;
    engine.seek(this.rest);
    engine.setLoop(this.looping ? this.loop : null);
    this.setVolume(this.app.player.volume);
    engine.addEventListener('change', () => {
      if (engine.problem) this.app.actions.report(engine.problem, () => void this.play());
      this.app.player.setAside(engine.playing);
      this.tell();
    });
    return engine;
  }

  async play() {
    this.armed = true;
    this.app.player.pause();
    try {
      const opening = this.open();
      this.tell();
      await (await opening).play();
    } catch (problem) {
      if (!this.parts.signal.aborted) this.app.actions.report(problem, () => void this.play());
    }
    this.tell();
  }

  toggle() {
    this.armed = true;
    if (this.playing) this.engine?.pause();
    else void this.play();
  }

  /** The player sounds: the mixer is silent. */
  yield() {
    this.armed = false;
    this.engine?.pause();
  }

  /** @param {number} seconds */
  seek(seconds) {
    this.armed = true;
    this.rest = Math.min(this.seconds, Math.max(0, seconds));
    this.engine?.seek(this.rest);
    this.tell();
  }

  /** @param {Stretch | null} loop @param {boolean} on */
  setLoop(loop, on = loop !== null) {
    this.armed = true;
    this.loop = loop;
    this.looping = on;
    this.engine?.setLoop(on ? this.loop : null);
    this.tell();
  }

  toggleLoop() {
    this.setLoop(this.loop ?? { start: 0, end: this.seconds }, !this.looping);
  }

  /** One end of the loop is where the music is now. @param {'start' | 'end'} which */
  mark(which) {
    const at = this.time;
    const { start, end } = this.loop ?? { start: 0, end: this.seconds };
    const loop = which === 'start' ? { start: at, end: end > at + LOOP_LEAST_S ? end : this.seconds } : { start: start < at - LOOP_LEAST_S ? start : 0, end: at };
    if (loop.end - loop.start >= LOOP_LEAST_S) this.setLoop(loop);
  }

  /** @param {number} volume 0 to 1 */
  setVolume(volume) {
    // The player's own law, so that one fader is as loud for both.
    this.engine?.setVolume(volume ** 2);
  }

  async mixdown() {
    try {
      const engine = await this.open();
      const { track, strips, sources, layout } = this;
      if (layout) await askMixdown(this.app, { track, strips, sources, layout, loop: this.looping ? engine.loop : null });
    } catch (problem) {
      if (!this.parts.signal.aborted) this.app.actions.report(problem, () => void this.mixdown());
    }
  }
}

/** A mix outlives a change of language or of the card, not the tab. @param {string} track @returns {Strips} */
function restore(track) {
  try {
    return JSON.parse(sessionStorage.getItem(KEPT + track) ?? '{}');
  } catch {
    return {};
  }
}

/** @param {string} track @param {Strips} strips */
function keep(track, strips) {
  try {
    if (isNeutral(strips)) sessionStorage.removeItem(KEPT + track);
    else sessionStorage.setItem(KEPT + track, JSON.stringify(strips));
  } catch {
    // Full or forbidden: the mix lasts as long as the card.
  }
}

/**
 * @param {Desk} desk
 * @param {App} app
 * @param {Disposer} parts
 */
function transport(desk, app, parts) {
  const { t } = app.words;
  const play = button({ label: t('mixer.play'), icon: 'play', iconOnly: true, class: 'round big', press: () => desk.toggle() });
  const position = el('span', { class: 'time', text: `0:00 / ${clock(desk.seconds)}` });
  const loop = button({ label: t('player.loop'), icon: 'loop', iconOnly: true, kind: 'quiet', pressed: false, press: () => desk.toggleLoop() });
  const from = button({ label: t('mixer.loopFrom'), iconOnly: true, kind: 'quiet letter', press: () => desk.mark('start') });
  from.textContent = 'A';
  const to = button({ label: t('mixer.loopTo'), iconOnly: true, kind: 'quiet letter', press: () => desk.mark('end') });
  to.textContent = 'B';
  const bar = el('i');
  const element = el(
    'div',
    { class: 'transport mixer-transport' },
    play,
    position,
    loop,
    from,
    to,
    el('span', { class: 'push' }),
    el('div', { class: 'meter master', attrs: { 'aria-hidden': 'true', title: t('mixer.level') } }, bar),
  );
  let shown = 0;
  parts.add(() => bar.remove());
  return {
    element,
    show: () => {
      const { playing, waiting } = desk;
      play.replaceChildren(icon(playing ? 'pause' : 'play'));
      setAttrs(play, { 'aria-label': t(playing ? 'mixer.pause' : 'mixer.play'), title: t(playing ? 'mixer.pause' : 'mixer.play'), 'aria-busy': waiting ? 'true' : null });
      loop.setAttribute('aria-pressed', String(desk.looping));
    },
    time: (/** @type {number} */ seconds) => {
      const text = `${clock(seconds)} / ${clock(desk.seconds)}`;
      if (position.textContent !== text) position.textContent = text;
    },
    level: (/** @type {number} */ peak) => {
      shown = Math.max(peak, shown * 0.9);
      bar.style.transform = `scaleX(${1 - decibels(shown) / LOWEST_DB})`;
      bar.classList.toggle('hot', shown > 0.708);
      bar.classList.toggle('clip', shown > 1);
    },
  };
}

/**
 * The line of time above the stems: a click seeks, a drag makes the loop; for the keyboard it is a slider.
 * @param {Desk} desk
 * @param {App} app
 * @param {(wave: HTMLElement) => void} place
 * @param {Disposer} parts
 */
function rulerPart(desk, app, place, parts) {
  const { t } = app.words;
  const canvas = el('canvas', { class: 'ruler-canvas', attrs: { 'aria-hidden': 'true' } });
  const lane = el('div', { class: 'ruler', attrs: { role: 'slider', tabindex: 0, 'aria-label': t('mixer.position'), 'aria-valuemin': 0, title: t('mixer.rulerHint') } }, canvas);
  const repaint = () => {
    drawRuler(canvas, desk.seconds, desk.looping ? desk.loop : null, clock);
    setAttrs(lane, { 'aria-valuemax': Math.round(desk.seconds), 'aria-valuenow': Math.round(desk.time), 'aria-valuetext': fineClock(desk.time) });
  };
  place(lane);
  lane.addEventListener('keydown', (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageDown: -10, PageUp: 10 }[event.key];
    if (step === undefined && event.key !== 'Home' && event.key !== 'End') return;
    event.preventDefault();
    event.stopPropagation();
    desk.seek(event.key === 'Home' ? 0 : event.key === 'End' ? desk.seconds : desk.time + (step ?? 0));
  });
  dragLoop(lane, desk, parts);
  const sizes = new ResizeObserver(repaint);
  sizes.observe(lane);
  parts.add(() => sizes.disconnect());
  return { element: el('div', { class: 'ruler-line' }, lane), repaint };
}

/** @param {HTMLElement} lane @param {Desk} desk @param {Disposer} parts */
function dragLoop(lane, desk, parts) {
  const { signal } = parts;
  let start = -1;
  const at = (/** @type {PointerEvent} */ event) => shareOf(lane, event) * desk.seconds;
  lane.addEventListener('pointermove', (event) => {
    if (start < 0) return;
    const [from, to] = [Math.min(start, at(event)), Math.max(start, at(event))];
    if (to - from >= Math.max(LOOP_LEAST_S, desk.seconds * 0.01)) desk.setLoop({ start: from, end: to });
  }, { signal });
  lane.addEventListener('pointerdown', (event) => {
    if (event.button === 0) start = at(event);
  }, { signal });
  for (const name of /** @type {const} */ (['pointerup', 'pointercancel'])) lane.addEventListener(name, () => (start = -1), { signal });
}

/** @param {HTMLElement} lane @param {PointerEvent} event @returns {number} 0 to 1 */
function shareOf(lane, event) {
  const { left, width } = lane.getBoundingClientRect();
  return Math.min(1, Math.max(0, (event.clientX - left) / Math.max(1, width)));
}

/**
 * @param {HTMLElement} lane
 * @param {(share: number) => void} seek
 * @param {Disposer} parts
 */
function seekBy(lane, seek, { signal }) {
  lane.addEventListener('pointerdown', (event) => {
    if (event.button !== 0) return;
    lane.setPointerCapture(event.pointerId);
    seek(shareOf(lane, event));
  }, { signal });
}

/**
 * @param {App} app
 * @param {HTMLElement} host
 * @param {Desk} desk
 * @param {readonly string[]} names
 * @param {ReadonlyMap<string, import('../mixer/strip.js').StripPart>} rows
 * @param {Disposer} parts
 */
function commands({ commands: keys }, host, desk, names, rows, { signal }) {
  let focused = names[0] ?? '';
  host.addEventListener('focusin', ({ target }) => {
    const row = target instanceof Element ? target.closest('[data-stem]') : null;
    if (row instanceof HTMLElement) focused = row.dataset.stem ?? focused;
  }, { signal });
  const take = (/** @type {string} */ name, /** @type {(detail: any) => void} */ act) =>
    keys.addEventListener(name, (event) => {
      if (!desk.armed && !host.contains(document.activeElement)) return;
      event.preventDefault();
      act(/** @type {CustomEvent} */ (event).detail);
    }, { signal });
  take('play', () => desk.toggle());
  take('seek', (seconds) => desk.seek(desk.time + seconds));
  take('loop', () => desk.toggleLoop());
  keys.addEventListener('solo', (event) => {
    const name = names[/** @type {CustomEvent<number>} */ (event).detail - 1];
    if (name) desk.change(name, { solo: !desk.strips[name]?.solo });
  }, { signal });
  keys.addEventListener('mute', () => rows.get(focused)?.mute.click(), { signal });
}
