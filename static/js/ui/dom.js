/** Making elements: text goes in as text, listeners end with their view. */

import { iconPath } from './icons.js';

const SVG = 'http://www.w3.org/2000/svg';

/**
 * What a view leaves behind to be undone, in one place.
 */
export class Disposer {
  constructor() {
    /** @type {(() => void)[]} */
    this.undo = [];
    this.ending = new AbortController();
  }

  /** Aborted when the view goes: hand it to addEventListener and fetch. */
  get signal() {
    return this.ending.signal;
  }

  /** @param {() => unknown} undo */
  add(undo) {
    this.undo.push(() => void undo());
  }

  /**
   * @param {() => void} frame called once a painted frame until the view goes
   */
  everyFrame(frame) {
    let id = 0;
    const step = () => {
      frame();
      id = requestAnimationFrame(step);
    };
    id = requestAnimationFrame(step);
    this.add(() => cancelAnimationFrame(id));
  }

  dispose() {
    this.ending.abort();
    for (const undo of this.undo.splice(0).reverse()) undo();
  }
}

/**
 * @typedef {Node | string | null | undefined | false} Child
 * @typedef {object} Props
 * @property {string} [class]
 * @property {string} [text]
 * @property {Record<string, string | number | boolean | null | undefined>} [attrs] true is an empty attribute, false none
 * @property {Record<string, (event: any) => void>} [on]
 */

/**
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Props} [props]
 * @param {...Child} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  if (props.class) made.className = props.class;
  if (props.text !== undefined) made.textContent = props.text;
  setAttrs(made, props.attrs ?? {});
  for (const [name, listener] of Object.entries(props.on ?? {})) made.addEventListener(name, listener);
  made.append(...present(children));
  return made;
}

/** @param {readonly Child[]} children */
function present(children) {
  return children.filter((child) => child !== null && child !== undefined && child !== false);
}

/**
 * @param {Element} element
 * @param {Record<string, string | number | boolean | null | undefined>} attrs
 */
export function setAttrs(element, attrs) {
  for (const [name, value] of Object.entries(attrs)) {
    if (value === null || value === undefined || value === false) element.removeAttribute(name);
    else element.setAttribute(name, value === true ? '' : String(value));
  }
}

/**
 * @param {string} name
 * @returns {SVGSVGElement} an icon for the eye only; its control carries the words
 */
export function icon(name) {
  const svg = document.createElementNS(SVG, 'svg');
  svg.setAttribute('viewBox', '0 0 24 24');
  svg.setAttribute('class', 'icon');
  svg.setAttribute('aria-hidden', 'true');
  const path = document.createElementNS(SVG, 'path');
  path.setAttribute('d', iconPath(name));
  svg.append(path);
  return svg;
}

/**
 * @typedef {object} ButtonProps
 * @property {string} label what it does: its text, or its accessible name when only an icon shows
 * @property {string} [icon]
 * @property {boolean} [iconOnly]
 * @property {string} [kind] 'primary', 'danger' or 'quiet'
 * @property {string} [class]
 * @property {(event: MouseEvent) => void} press
 * @property {boolean} [pressed] for a switch
 * @property {boolean} [disabled]
 * @property {Props['attrs']} [attrs]
 */

/** @param {ButtonProps} props */
export function button(props) {
  const classes = ['button', props.kind ?? '', props.iconOnly ? 'icon-only' : '', props.class ?? ''];
  const made = el(
    'button',
    {
      class: classes.filter(Boolean).join(' '),
      attrs: {
        type: 'button',
        'aria-label': props.iconOnly ? props.label : null,
        title: props.iconOnly ? props.label : null,
        'aria-pressed': props.pressed === undefined ? null : String(props.pressed),
        disabled: props.disabled ?? false,
        ...props.attrs,
      },
      on: { click: props.press },
    },
    props.icon ? icon(props.icon) : null,
    props.iconOnly ? null : el('span', { text: props.label }),
  );
  return made;
}

/**
 * A button that waits for what it started: it cannot be pressed twice meanwhile, and never stays dead.
 * @param {HTMLButtonElement} pressed
 * @param {() => Promise<unknown>} work
 */
export async function busy(pressed, work) {
  if (pressed.getAttribute('aria-busy') === 'true') return;
  pressed.setAttribute('aria-busy', 'true');
  try {
    await work();
  } finally {
    pressed.removeAttribute('aria-busy');
  }
}

/**
 * @param {readonly {value: string, label: string}[]} options
 * @param {string} value
 * @param {(value: string) => void} change
 * @param {Props['attrs']} [attrs]
 */
export function select(options, value, change, attrs = {}) {
  const made = el('select', { class: 'select', attrs, on: { change: () => change(made.value) } });
  offer(made, options);
  made.value = value;
  return made;
}

/** Other options in the same list. @param {HTMLSelectElement} list @param {readonly {value: string, label: string}[]} options */
export function offer(list, options) {
  list.replaceChildren(...options.map((option) => el('option', { text: option.label, attrs: { value: option.value } })));
}

/** Where something is being typed, no shortcut may act. @param {EventTarget | null} target */
export function isTyping(target) {
  if (!(target instanceof HTMLElement)) return false;
  if (target.isContentEditable || target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement) return true;
  return target instanceof HTMLInputElement && !['checkbox', 'radio', 'button', 'file', 'range'].includes(target.type);
}

/**
 * Offer a file made in the page.
 * @param {string} name
 * @param {string} type
 * @param {string} text
 */
export function saveText(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = el('a', { attrs: { href: url, download: name } });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/**
 * A file's name as text that a narrow place breaks after an underscore or before the ending, not inside a word.
 * @param {string} name
 * @returns {(string | HTMLElement)[]}
 */
export const breakable = (name) =>
  name.split(/(?<=_)|(?=\.[^.]*$)/).flatMap((part, index) => (index === 0 ? [part] : [document.createElement('wbr'), part]));
