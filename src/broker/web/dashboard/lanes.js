// The places of the bars of a timeline: a row per tool, with a lane for each attempt at the same time.

export const LANE = 18, GAP = 6;
const MOST_LANES = 8;

/**
 * The rows in the order of the tools' names, each `{tool, bars, top, height}`.
 *
 * The bars of a row are in the order of their beginning, and have a `lane`. If more bars overlap than there are
 * lanes, they are drawn over one another.
 */
export function rowsOf(bars) {
  const byTool = Map.groupBy(bars, (bar) => bar.tool);
  let top = 0;
  return [...byTool.keys()].sort().map((tool) => {
    const own = byTool.get(tool).sort((one, other) => one.begin - other.begin);
    const row = { tool, bars: own, top, height: GAP + LANE * intoLanes(own) };
    top += row.height;
    return row;
  });
}

/** Give each bar the first free lane. Returns the number of lanes. */
function intoLanes(bars) {
  const ends = [];
  for (const bar of bars) {
    const free = ends.findIndex((end) => end <= bar.begin);
    bar.lane = free >= 0 ? free : Math.min(ends.length, MOST_LANES - 1);
    ends[bar.lane] = Math.max(bar.end, ends[bar.lane] ?? bar.end);
  }
  return ends.length;
}

/** The bar of a row that begins nearest to a moment. */
export function nearest(bars, moment) {
  const distance = (bar) => Math.abs(bar.begin - moment);
  return bars.reduce((best, bar) => (distance(bar) < distance(best) ? bar : best));
}
