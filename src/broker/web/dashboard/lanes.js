// Where the bars of a timeline lie: a row for each tool, in it a lane for each attempt at the same time.

export const LANE = 18, GAP = 6;
const MOST_LANES = 8;

/**
 * The tools in the order of their names, each `{tool, bars, top, height}`.
 *
 * Its bars are in the order of their beginning, and know their `lane`. More at once than there are lanes are drawn
 * over one another.
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

/** Give each bar the first lane that is free; how many lanes there are. */
function intoLanes(bars) {
  const ends = [];
  for (const bar of bars) {
    const free = ends.findIndex((end) => end <= bar.begin);
    bar.lane = free >= 0 ? free : Math.min(ends.length, MOST_LANES - 1);
    ends[bar.lane] = Math.max(bar.end, ends[bar.lane] ?? bar.end);
  }
  return ends.length;
}

/** The first row, in the order from above, that ends below a height; how many there are, if none does. */
export function firstBelow(rows, height) {
  let low = 0, high = rows.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (rows[middle].top + rows[middle].height > height) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** Which bar of a row begins nearest to a moment. */
export function nearest(bars, moment) {
  const distance = (bar) => Math.abs(bar.begin - moment);
  return bars.reduce((best, bar) => (distance(bar) < distance(best) ? bar : best));
}
