// Rows of a timeline, and lanes in them: what overlaps lies side by side.

/** How high a lane is, and how far rows are apart. */
export const LANE = 18, GAP = 6;
const MOST_LANES = 8;

/** The tools in the order of their names, each with its bars in lanes where they overlap. */
export function rowsOf(attempts) {
  const byTool = Map.groupBy(attempts, (bar) => bar.tool);
  const rows = [...byTool.keys()].sort().map((tool) => ({ tool, bars: byTool.get(tool), top: 0, height: 0 }));
  let top = 0;
  for (const row of rows) {
    row.bars.sort((one, other) => one.begin - other.begin);
    const ends = [];
    for (const bar of row.bars) {
      const free = ends.findIndex((end) => end <= bar.begin);
      bar.lane = free >= 0 ? free : Math.min(ends.length, MOST_LANES - 1);
      ends[bar.lane] = bar.end;
    }
    row.top = top;
    row.height = GAP + LANE * ends.length;
    top += row.height;
  }
  return rows;
}

/** Which bar is nearest in time to another. */
export function nearest(bars, to) {
  if (!to) return 0;
  let best = 0;
  bars.forEach((bar, place) => {
    if (Math.abs(bar.begin - to.begin) < Math.abs(bars[best].begin - to.begin)) best = place;
  });
  return best;
}
