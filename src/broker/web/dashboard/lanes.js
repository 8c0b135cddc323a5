// The layout of a timeline: a row per tool, with a lane for each attempt at the same time.

export const LANE = 18, GAP = 6;
const MAX_LANES = 8;

/**
 * Return the rows in the order of the tools' names, each as `{tool, bars, top, height}`.
 *
 * The bars of a row are in the order of their start times, and each has a `lane`. If there are not enough lanes, bars
 * are drawn over one another.
 */
export function rowsOf(bars) {
  const byTool = Map.groupBy(bars, (bar) => bar.tool);
  let top = 0;
  return [...byTool.keys()].sort().map((tool) => {
    const own = byTool.get(tool).sort((one, other) => one.begin - other.begin);
    const row = { tool, bars: own, top, height: GAP + LANE * assignLanes(own) };
    top += row.height;
    return row;
  });
}

/** Give each bar the first free lane. Returns the number of lanes. */
function assignLanes(bars) {
  const ends = [];
  for (const bar of bars) {
    const free = ends.findIndex((end) => end <= bar.begin);
    bar.lane = free >= 0 ? free : Math.min(ends.length, MAX_LANES - 1);
    ends[bar.lane] = Math.max(bar.end, ends[bar.lane] ?? bar.end);
  }
  return ends.length;
}

/** Return the bar that starts nearest to a moment. */
export function nearest(bars, moment) {
  const distance = (bar) => Math.abs(bar.begin - moment);
  return bars.reduce((best, bar) => (distance(bar) < distance(best) ? bar : best));
}
