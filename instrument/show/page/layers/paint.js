"use strict";
// Paints the layer grid of grid.js: the cells with their names, the bar of colours, each projection over time.
const PALETTE = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"].map(
  (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)),
);

function shortName(column) {
  const full = GRID.columns[column],
    last = full.split(".").at(-1);
  return GRID.columns.filter((other) => other.split(".").at(-1) === last).length > 1 ? full : last;
}

function colourOf(value) {
  if (Number.isNaN(value)) return null;
  const { from, to, log, bad } = shown;
  let share = log ? (value > 0 ? Math.log(value / from) / Math.log(to / from) : 0) : to > 0 ? value / to : 0;
  share = Math.max(0, Math.min(1, bad ? 1 - share : share)) * (PALETTE.length - 1);
  const at = Math.min(PALETTE.length - 2, Math.floor(share)),
    rest = share - at;
  return `rgb(${PALETTE[at].map((c, i) => Math.round(c + (PALETTE[at + 1][i] - c) * rest)).join(",")})`;
}

// A canvas of that size in CSS pixels, cleared, its context scaled to the screen's own.
function sheet(canvas, width, height) {
  const ratio = devicePixelRatio || 1;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  canvas.style.width = width + "px";
  canvas.style.height = height + "px";
  const ctx = canvas.getContext("2d");
  ctx.scale(ratio, ratio);
  ctx.font = "12px system-ui, sans-serif";
  ctx.textBaseline = "middle";
  return ctx;
}

function layout() {
  const map = document.getElementById("map"),
    room = map.parentElement.clientWidth || 400,
    ctx = map.getContext("2d");
  ctx.font = "12px system-ui, sans-serif";
  const names = shown.columns.map(shortName),
    rows = shown.rows.map((row) => GRID.rows[row] || "–");
  const left = 12 + Math.max(...[t("report.layer"), ...rows].map((text) => ctx.measureText(text).width)),
    longest = Math.max(...names.map((text) => ctx.measureText(text).width));
  const across = (over) => Math.max(18, Math.min(Math.max(90, longest + 16), (room - left - over) / names.length));
  const tilted = longest > across(8) - 6,
    wide = across(tilted ? longest * 0.71 : 8);
  const top = tilted ? 14 + longest * 0.71 : 22,
    down = Math.max(12, Math.min(26, 420 / rows.length));
  return {
    names,
    rows,
    left,
    top,
    across: wide,
    down,
    tilted,
    width: left + wide * names.length + (tilted ? Math.max(8, longest * 0.71 - wide / 2 + 12) : 8),
    height: top + down * rows.length + 4,
  };
}

function paint() {
  if (!shown || !shown.sites.length) return;
  const map = document.getElementById("map"),
    box = (shown.box = layout()),
    ctx = sheet(map, box.width, box.height),
    text = css("--text");
  ctx.fillStyle = css("--dim");
  box.names.forEach((name, i) => {
    ctx.save();
    ctx.translate(box.left + (i + 0.5) * box.across, box.top - 8);
    if (box.tilted) ctx.rotate(-Math.PI / 4);
    else ctx.textAlign = "center";
    ctx.fillText(name, 0, 0);
    ctx.restore();
  });
  ctx.textAlign = "left";
  ctx.fillText(t("report.layer"), 0, box.top - 8);
  ctx.textAlign = "right";
  const every = Math.ceil(12 / box.down);
  box.rows.forEach((name, i) => {
    if (i % every === 0) ctx.fillText(name, box.left - 6, box.top + (i + 0.5) * box.down);
  });
  shown.rows.forEach((row, i) =>
    shown.columns.forEach((column, k) => {
      const site = shown.at.get(row + "," + column),
        x = box.left + k * box.across,
        y = box.top + i * box.down;
      if (site === undefined) return;
      const colour = colourOf(cell(STATE.quantity, site, STATE.bin));
      ctx.fillStyle = colour || css("--panel");
      ctx.fillRect(x + 0.5, y + 0.5, box.across - 1, box.down - 1);
      if (cell("nonfinite", site, STATE.bin) > 0) {
        ctx.strokeStyle = css("--wrong");
        ctx.lineWidth = 2;
        ctx.strokeRect(x + 2, y + 2, box.across - 4, box.down - 4);
      }
      if (GRID.names[site] === STATE.site) {
        ctx.strokeStyle = text;
        ctx.lineWidth = 2;
        ctx.strokeRect(x, y, box.across, box.down);
      }
    }),
  );
  map.setAttribute("aria-label", `${t("report.layers.keys")} ${t("page.step_n", { step: stepsOf(STATE.bin) })}`);
  paintBar(box.width);
  paintTimes();
  tellCells();
  tell(shown.sites.find((site) => GRID.names[site] === STATE.site));
}

// The colours with the values they stand for.
function paintBar(width) {
  const { from, to, log, bad } = shown,
    bar = document.getElementById("bar"),
    own = Math.max(140, Math.min(width, 420, bar.parentElement.clientWidth - 130));
  const ctx = sheet(bar, own, 34),
    wide = own - 24;
  for (let i = 0; i < wide; i++) {
    ctx.fillStyle = colourOf(log ? from * (to / from) ** (i / wide) : (to * i) / wide) || "transparent";
    ctx.fillRect(12 + i, 2, 1.5, 10);
  }
  ctx.fillStyle = css("--dim");
  for (const [i, share] of [0, 0.5, 1].entries()) {
    ctx.textAlign = ["left", "center", "right"][i];
    ctx.fillText(
      number(log ? from * (to / from) ** share : to * share, 3) + (bad ? "×" : ""),
      [2, 12 + wide / 2, wide + 22][i],
      24,
    );
  }
}

// Each projection: layers down, steps across.
function paintTimes() {
  const n = GRID.bins.length;
  for (const canvas of document.querySelectorAll("canvas[data-column]")) {
    const column = Number(canvas.dataset.column),
      width = Math.max(80, canvas.parentElement.clientWidth),
      height = Math.max(36, Math.min(120, shown.rows.length * 6));
    const ctx = sheet(canvas, width, height),
      per = Math.max(1, Math.floor(n / width));
    shown.rows.forEach((row, i) => {
      const site = shown.at.get(row + "," + column);
      if (site === undefined) return;
      for (let bin = 0; bin < n; bin += per) {
        let value = NaN;
        for (let b = bin; b < Math.min(n, bin + per); b++) {
          const own = cell(STATE.quantity, site, b);
          if (!(own <= value)) value = Number.isNaN(own) ? value : own;
        }
        const colour = colourOf(value);
        if (!colour) continue;
        ctx.fillStyle = colour;
        ctx.fillRect(
          (bin / n) * width,
          (i / shown.rows.length) * height,
          (per / n) * width + 0.6,
          height / shown.rows.length + 0.6,
        );
      }
    });
    ctx.fillStyle = css("--text");
    ctx.fillRect(((STATE.bin + 0.5) / n) * width - 0.75, 0, 1.5, height);
  }
}

function chooseTime(event, column) {
  const box = event.currentTarget.getBoundingClientRect();
  const bin = Math.min(GRID.bins.length - 1, Math.floor(((event.clientX - box.left) / box.width) * GRID.bins.length));
  const row =
    shown.rows[
      Math.min(shown.rows.length - 1, Math.floor(((event.clientY - box.top) / box.height) * shown.rows.length))
    ];
  const input = document.getElementById("bin");
  if (input) {
    input.value = bin;
    input.dispatchEvent(new Event("input"));
  }
  pick(shown.at.get(row + "," + column));
}
