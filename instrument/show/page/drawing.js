"use strict";
// Small drawings of a study as SVG: parallel coordinates, and of one key what each value reached (an isolation plot).
// Places along an axis are shares from 0 to 1 that Python has computed; a table beside each drawing says the same.
const SVG = "http://www.w3.org/2000/svg";

function shape(tag, attributes, ...content) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes))
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  for (const item of content.flat(2)) if (item !== null && item !== undefined) element.append(item);
  return element;
}

const titled = (text) => shape("title", {}, text);
const written = (x, y, text, anchor = "middle", colour = "--dim") =>
  shape(
    "text",
    { x, y, "text-anchor": anchor, fill: css(colour), "font-size": 12, stroke: css("--back"), "stroke-width": 3, "paint-order": "stroke" },
    text,
  );

// A scale of the metric: better is up, whichever way that is.
function metricScale(values, top, bottom) {
  const least = Math.min(...values),
    most = Math.max(...values),
    room = (most - least || Math.abs(most) || 1) * 0.06,
    [low, high] = [least - room, most + room];
  const share = (value) => (value - low) / (high - low);
  return { y: (value) => (DATA.lower ? top + share(value) * (bottom - top) : bottom - share(value) * (bottom - top)), least, most };
}

// One axis a key and one of the metric, one line a trial; who died ends at the foot of the last axis.
function parallel(trials, keys, lit, width) {
  const height = width < 500 ? 240 : 320,
    [left, right, top, bottom] = [70, 70, 34, height - 26],
    alive = trials.filter((trial) => trial.value !== null && !trial.dead),
    scale = metricScale(alive.length ? alive.map((trial) => trial.value) : [0, 1], top, bottom - 24),
    across = (i) => left + (i * (width - left - right)) / Math.max(1, keys.length),
    place = (share) => bottom - share * (bottom - top);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": t("sweep.page.parallel") });
  // the last one has its words outside of the lines
  const axis = (x, name, ticks) => {
    const [beside, anchor] = x === last ? [x + 6, "start"] : [x - 6, "end"];
    svg.append(shape("line", { x1: x, x2: x, y1: top, y2: bottom, stroke: css("--faint") }), written(x, 16, name, "middle", "--text"));
    for (const [y, text] of ticks) svg.append(written(beside, y + 4, text, anchor));
  };
  const last = across(keys.length);
  const ranked = [...alive].sort((a, b) => (DATA.lower ? a.value - b.value : b.value - a.value));
  trials.forEach((trial, i) => {
    const end = trial.dead ? bottom : trial.value === null ? null : scale.y(trial.value);
    const points = keys
      .map((key, k) => (key.places[i] === null ? null : [across(k), place(key.places[i])]))
      .concat(end === null ? [] : [[last, end]])
      .filter((point) => point);
    const best = ranked.indexOf(trial) === 0,
      colour = trial.dead ? "--wrong" : best ? "--good" : "--note";
    svg.append(
      shape(
        "polyline",
        {
          points: points.map((point) => point.map((v) => v.toFixed(1)).join(",")).join(" "),
          fill: "none",
          stroke: css(colour),
          "stroke-width": best || lit === trial.name ? 3 : 1.5,
          "stroke-opacity": lit && lit !== trial.name ? 0.15 : best || trial.dead ? 1 : 0.55,
          "stroke-dasharray": trial.dead ? "5 4" : null,
        },
        titled(`${trial.name}: ${trial.settings.join(", ")} → ${trial.dead ? said(trial.end) : number(trial.value)}`),
      ),
    );
  });
  // after the lines, which would cross them out
  keys.forEach((key, i) =>
    axis(
      across(i),
      shortKey(key.key),
      thinned(key.ticks).map(([share, text]) => [place(share), text]),
    ),
  );
  const ends = alive.length ? [scale.least, scale.most] : [];
  axis(
    last,
    DATA.metric,
    ends.map((value) => [scale.y(value), number(value, 3)]),
  );
  if (trials.some((trial) => trial.dead)) svg.append(written(last + 6, bottom + 4, "†", "start", "--wrong"));
  return svg;
}

const shortKey = (key) => key.split(".").at(-1);

// No more marks than an axis has room for, the ends among them.
function thinned(ticks) {
  const every = Math.ceil(ticks.length / 10);
  return ticks.filter((_, i) => i % every === 0 || i === ticks.length - 1);
}

// What each value of a key reached: every trial, the best over everything else, and the band that seeds differ by.
function isolation(one, width) {
  const height = 230,
    [left, right, top, bottom] = [56, 16, 10, height - 40],
    values = one.points.flatMap((point) => [point.best, ...point.all]).concat(one.band),
    scale = metricScale(values, top, bottom),
    x = (share) => left + 14 + share * (width - left - right - 28);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `${one.key}: ${DATA.metric}` });
  const [y1, y2] = one.band.map(scale.y);
  svg.append(
    shape("rect", { x: left, width: width - left - right, y: Math.min(y1, y2), height: Math.abs(y2 - y1), fill: css("--band"), "fill-opacity": 0.6 }, titled(t("sweep.page.band"))),
    shape("line", { x1: left, x2: left, y1: top, y2: bottom, stroke: css("--faint") }),
    shape("line", { x1: left, x2: width - right, y1: bottom, y2: bottom, stroke: css("--faint") }),
  );
  for (const value of [scale.least, (scale.least + scale.most) / 2, scale.most])
    svg.append(written(left - 5, scale.y(value) + 4, number(value, 3), "end"));
  thinned(one.points).forEach((point) => svg.append(written(x(point.at), bottom + 16, point.value)));
  svg.append(written((left + width - right) / 2, height - 6, one.key, "middle", "--text"));
  const line = one.points.map((point) => `${x(point.at).toFixed(1)},${scale.y(point.best).toFixed(1)}`).join(" ");
  svg.append(shape("polyline", { points: line, fill: "none", stroke: css("--note"), "stroke-opacity": 0.5 }));
  for (const point of one.points) {
    for (const value of point.all)
      svg.append(shape("circle", { cx: x(point.at), cy: scale.y(value), r: 2.5, fill: css("--dim"), "fill-opacity": 0.6 }));
    svg.append(
      shape("circle", { cx: x(point.at), cy: scale.y(point.best), r: 4.5, fill: css("--note") }, titled(`${point.value}: ${point.trials} ${number(point.best)}`)),
    );
  }
  return svg;
}
