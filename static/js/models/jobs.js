/** Jobs as the page knows them: the highest rev wins, a final status never changes. */

/** @typedef {import('../contract.js').Job} Job */
/** @typedef {Readonly<Record<string, Job>>} Jobs */

const FINAL = new Set(['done', 'failed', 'cancelled', 'interrupted']);

/** @param {{status: string}} job */
export const isFinal = (job) => FINAL.has(job.status);

/**
 * Take in a snapshot; an older one, or one that would undo a final status, changes nothing.
 * @param {Jobs} jobs
 * @param {Job} job
 * @returns {Jobs} the same object when nothing changed
 */
export function takeJob(jobs, job) {
  const known = jobs[job.id];
  if (known && (known.rev >= job.rev || (isFinal(known) && known.status !== job.status))) return jobs;
  return { ...jobs, [job.id]: job };
}

/**
 * Take in all the server knows after a (re)connection. What it no longer lists stays as it was last seen.
 * @param {Jobs} jobs
 * @param {Job[]} snapshots
 * @returns {Jobs}
 */
export function takeAll(jobs, snapshots) {
  return snapshots.reduce(takeJob, jobs);
}

/**
 * @param {Jobs} jobs
 * @param {string} clientId
 * @returns {Job | undefined}
 */
export function byClient(jobs, clientId) {
  return Object.values(jobs).find((job) => job.client_id === clientId);
}

/**
 * The download or load of a model that is going on, if there is one.
 * @param {Jobs} jobs
 * @param {string} model
 */
export function loadOf(jobs, model) {
  return Object.values(jobs).find(
    (job) => job.kind === 'load' && job.request.model === model && !isFinal(job),
  );
}

/**
 * @param {Job} job
 * @returns {number | null} 0 to 1, or null when the phase has no known end
 */
export function fraction(job) {
  if (!(job.total > 0)) return null;
  return Math.min(1, Math.max(0, job.done / job.total));
}

/** @param {Jobs} jobs */
export function running(jobs) {
  return Object.values(jobs).filter((job) => !isFinal(job));
}
