/**
 * Copy the browser libraries from node_modules into static/vendor, where the server can offer them.
 *
 * A stamp names the versions that were copied, so a second run does nothing; `--check` only asks whether
 * a copy is due (exit 1 when it is).
 */
import { copyFile, mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const target = join(root, 'static', 'vendor');

// What the page imports: package, file inside it, name in static/vendor, what its types are.
/** @type {[name: string, file: string, copy: string, types: string][]} */
const FILES = [
  ['wavesurfer.js', 'dist/wavesurfer.esm.js', 'wavesurfer.esm.js', "export { default } from 'wavesurfer.js';"],
  [
    'wavesurfer.js',
    'dist/plugins/regions.esm.js',
    'regions.esm.js',
    "export { default } from 'wavesurfer.js/plugins/regions';",
  ],
  ['socket.io-client', 'dist/socket.io.esm.min.js', 'socket.io.esm.min.js', "export * from 'socket.io-client';"],
];

/** @returns {Promise<string>} one line a package: its name and version */
async function wanted() {
  const names = [...new Set(FILES.map(([name]) => name))];
  const versions = await Promise.all(
    names.map(async (name) => {
      const text = await readFile(join(root, 'node_modules', name, 'package.json'), 'utf8');
      return `${name} ${JSON.parse(text).version}`;
    }),
  );
  return `${versions.join('\n')}\n`;
}

/** @returns {Promise<string>} the stamp of the last copy, or nothing */
async function present() {
  try {
    return await readFile(join(target, 'STAMP'), 'utf8');
  } catch {
    return '';
  }
}

async function main() {
  let stamp;
  try {
    stamp = await wanted();
  } catch {
    process.stderr.write('The browser libraries are not installed. Run: npm ci\n');
    process.exit(2);
  }
  const due = stamp !== (await present());
  if (process.argv.includes('--check')) process.exit(due ? 1 : 0);
  if (!due) return;
  await rm(target, { recursive: true, force: true });
  await mkdir(target, { recursive: true });
  for (const [name, file, copy, types] of FILES) {
    await copyFile(join(root, 'node_modules', name, file), join(target, copy));
    await writeFile(join(target, copy.replace(/\.js$/, '.d.ts')), `${types}\n`);
  }
  // The stamp last: a copy that was cut short is done again.
  await writeFile(join(target, 'STAMP'), stamp);
}

await main();
