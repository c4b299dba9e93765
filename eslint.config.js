/** Lint rules that need no plugin; types are tsc's matter. */
const browser = Object.fromEntries(
  `AbortController AbortSignal AudioContext Blob CSS DOMException DataTransfer Document DragEvent Element Event EventTarget
   File FileReader FormData GainNode HTMLElement HTMLInputElement Intl KeyboardEvent MutationObserver Node
   ResizeObserver Response Storage TextDecoder URL URLSearchParams Uint8Array cancelAnimationFrame clearInterval
   clearTimeout console crypto customElements devicePixelRatio document fetch getComputedStyle globalThis history
   localStorage location matchMedia navigator performance queueMicrotask requestAnimationFrame setInterval
   setTimeout structuredClone window Audio CustomEvent XMLHttpRequest OfflineAudioContext HTMLTextAreaElement
   HTMLSelectElement HTMLButtonElement IntersectionObserver Worker sessionStorage`
    .split(/\s+/)
    .map((name) => [name, 'readonly']),
);
const node = { TextEncoder: 'readonly', Headers: 'readonly', Response: 'readonly', AbortController: 'readonly', process: 'readonly', console: 'readonly', URL: 'readonly', structuredClone: 'readonly' };

const rules = {
  'no-undef': 'error',
  'no-unused-vars': ['error', { argsIgnorePattern: '^_' }],
  'prefer-const': 'error',
  'no-var': 'error',
  eqeqeq: ['error', 'always', { null: 'ignore' }],
  'no-implicit-globals': 'error',
  'no-shadow': 'error',
  'no-console': 'error',
  'no-eval': 'error',
  'no-implied-eval': 'error',
  'no-new-func': 'error',
  'no-alert': 'error',
  'no-else-return': 'error',
  'no-unreachable': 'error',
  'no-constant-condition': ['error', { checkLoops: false }],
  'no-restricted-properties': [
    'error',
    ...['innerHTML', 'outerHTML', 'insertAdjacentHTML'].map((property) => ({
      property,
      message: 'Text from a person or a file goes in through textContent.',
    })),
  ],
  'max-lines': ['error', { max: 520, skipBlankLines: true, skipComments: true }],
};

export default [
  { ignores: ['static/vendor/**', 'node_modules/**'] },
  { files: ['static/js/**/*.js'], languageOptions: { globals: browser }, rules },
  { files: ['tests/js/**/*.js', 'scripts/**/*.mjs', '*.js'], languageOptions: { globals: node }, rules },
];
