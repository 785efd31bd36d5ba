"use strict";
// What is painted into a chart besides its lines: a band behind them, and marks of what went wrong over them.
// A mark is {kind, x: [...], text}: collapse a line, lost crosses over a shade, dropped crosses, skipped ticks at the foot;
// of several runs each has its colour, and no shade.

function paintBand(u, band) {
  const { ctx, bbox } = u;
  const [top, foot] = [band.high, band.low].map((value) =>
    Math.min(bbox.top + bbox.height, Math.max(bbox.top, u.valToPos(value, "y", true))),
  );
  ctx.save();
  ctx.globalAlpha = 0.14;
  ctx.fillStyle = css("--good");
  ctx.fillRect(bbox.left, top, bbox.width, foot - top);
  ctx.restore();
}

function paintMarks(u, marks) {
  const { ctx, bbox } = u,
    ratio = devicePixelRatio || 1;
  ctx.save();
  ctx.beginPath();
  const edge = 6 * ratio; // a mark at the last step is whole
  ctx.rect(bbox.left - edge, bbox.top, bbox.width + 2 * edge, bbox.height);
  ctx.clip();
  for (const mark of marks) {
    const at = mark.x.map((x) => u.valToPos(x, "x", true));
    ctx.strokeStyle = ctx.fillStyle = css(mark.colour || (mark.kind === "skipped" ? "--watch" : "--wrong"));
    ctx.lineWidth = 1.5 * ratio;
    if (mark.kind === "lost" || mark.kind === "dropped")
      paintLost(ctx, bbox, at, ratio, mark.kind === "lost" && !mark.colour ? rangesOf(u, mark) : []);
    else
      for (const x of at) {
        if (mark.kind === "skipped") ctx.fillRect(x - ratio, bbox.top + bbox.height - 8 * ratio, 2 * ratio, 8 * ratio);
        else {
          ctx.beginPath();
          ctx.moveTo(x, bbox.top);
          ctx.lineTo(x, bbox.top + bbox.height);
          ctx.stroke();
          ctx.beginPath();
          ctx.moveTo(x, bbox.top);
          ctx.lineTo(x + 8 * ratio, bbox.top + 4 * ratio);
          ctx.lineTo(x, bbox.top + 8 * ratio);
          ctx.fill();
        }
      }
  }
  ctx.restore();
}

// Runs of neighbouring points, as places on the canvas: half a step to either side of them is shaded.
function rangesOf(u, mark) {
  const xs = u.data[0],
    lost = new Set(mark.x),
    found = [];
  let first = -1;
  for (let i = 0; i <= xs.length; i++) {
    const own = i < xs.length && lost.has(xs[i]);
    if (own && first < 0) first = i;
    if (own || first < 0) continue;
    const before = first ? (xs[first] + xs[first - 1]) / 2 : xs[first],
      after = i < xs.length ? (xs[i] + xs[i - 1]) / 2 : xs[i - 1];
    found.push([u.valToPos(before, "x", true), u.valToPos(after, "x", true)]);
    first = -1;
  }
  return found;
}

function paintLost(ctx, bbox, at, ratio, ranges) {
  ctx.save();
  ctx.globalAlpha = 0.1;
  for (const [from, to] of ranges) ctx.fillRect(from, bbox.top, Math.max(to - from, ratio), bbox.height);
  ctx.restore();
  const y = bbox.top + 9 * ratio,
    half = 3.5 * ratio;
  let last = -Infinity;
  for (const x of at) {
    if (x - last < 9 * ratio) continue; // crosses that would touch are one
    last = x;
    ctx.beginPath();
    ctx.moveTo(x - half, y - half);
    ctx.lineTo(x + half, y + half);
    ctx.moveTo(x + half, y - half);
    ctx.lineTo(x - half, y + half);
    ctx.stroke();
  }
}

// The words of the marks within a few pixels of a place.
function marksNear(u, marks, left) {
  return marks.filter((mark) => mark.x.some((x) => Math.abs(u.valToPos(x, "x") - left) < 6)).map((mark) => mark.text);
}
