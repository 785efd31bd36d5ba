"use strict";
// Points that come while the page of a run is open, from whoever serves it (page/__init__.py's `live`):
//   loraTrain.append(rows)   lines of metrics.jsonl in their order; they are drawn where they belong, a line that says more
//                            of the last step in its place. False, with nothing drawn of that line and those after it,
//                            where a line says what no point can show: a step that was run again, lost or skipped, the
//                            first evaluation, the end. Then make the page's data anew:
//   loraTrain.update(data)   report_data of the run as it is now, whole or in part (without `layers`, say)
// Neither loses zoom, scroll, focus, or what is open. Formulas of the axes: report/charts.py.
{
  const known = (value) => typeof value === "number" && Number.isFinite(value);
  const rounded = (value) => (known(value) ? (Number.isInteger(value) ? value : Number(value.toPrecision(7))) : null);
  let sums = {}; // as they are, before they are rounded for the page
  const isEvaluation = (row) => !("loss" in row) && Object.keys(row).some((key) => key.startsWith("eval_"));

  function append(rows) {
    const fits = rows.findIndex((row) => !(isEvaluation(row) ? addEvaluation(row) : addStep(row))),
      n = fits < 0 ? rows.length : fits;
    if (n) {
      if (DATA.state === "running") tellState();
      for (const one of CHARTS) feed(one);
    }
    return fits < 0;
  }

  function addStep(row) {
    const last = STEPS.at(-1);
    if ("train_runtime" in row || last === undefined) return false;
    if (row.step === last) return addToLast(row);
    if (!(row.step > last) || !known(row.loss) || row.skipped) return false;
    const before = (name) => DATA.axes[name].steps.findLast((value) => value !== null) ?? 0;
    const summed = (name, more) => (sums[name] = (sums[name] ?? before(name)) + (more || 0));
    const stepping = DATA.axes.time ? summed("time", row.step_seconds / 60) : null;
    const along = {
      step: () => row.step,
      epoch: () => row.epoch,
      tokens: () => summed("tokens", row.tokens),
      rows: () => (row.step * before("rows")) / last,
      time: () => stepping,
    };
    const evals = stepping + (row.eval_seconds_total || 0) / 60,
      own = { ...row, time_steps: stepping, time_evals: evals, time_saves: evals + (row.save_seconds_total || 0) / 60 };
    for (const name of Object.keys(DATA.axes)) DATA.axes[name].steps.push(rounded(along[name]()));
    for (const [name, values] of Object.entries(DATA.steps)) values.push(rounded(own[name]));
    return true;
  }

  // A trainer that logs after its step has the step's line written again, with more in it.
  function addToLast(row) {
    const own = Object.entries(DATA.steps).filter(([name]) => name in row);
    if (own.some(([name, values]) => values.at(-1) !== null && values.at(-1) !== rounded(row[name]))) return false;
    for (const [name, values] of own) values[values.length - 1] = rounded(row[name]);
    return true;
  }

  function addEvaluation(row) {
    const { evals } = DATA,
      at = STEPS.indexOf(row.step);
    if (at < 0 || !evals.eval_loss || row.eval_loss === null || row.step < evals.step.at(-1)) return false;
    if (row.step > evals.step.at(-1)) {
      for (const values of Object.values(evals)) values.push(null);
      for (const axis of Object.values(DATA.axes)) axis.evals.push(axis.steps[at]);
    }
    for (const [name, values] of Object.entries(evals))
      if (name in row) values[values.length - 1] = rounded(row[name]);
    return true;
  }

  function tellState() {
    for (const lang of Object.keys(DATA.status.state))
      DATA.status.state[lang] = DATA.text[lang]["report.state.running"].replace("{step}", number(STEPS.at(-1)));
    const place = document.querySelector(".status .state b");
    if (place) place.textContent = said(DATA.status.state);
  }

  // Nothing is taken away while it is held: a slider, a selection, an open list.
  let isHeld = false,
    waiting = null;
  const canTell = CSS.supports("selector(select:open)");
  addEventListener("pointerdown", () => (isHeld = true), true);
  for (const end of ["pointerup", "pointercancel", "blur"])
    addEventListener(end, () => {
      isHeld = false;
      if (waiting) setTimeout(() => update({}));
    });

  function update(data) {
    waiting = { ...waiting, ...data };
    if (isHeld || (canTell && document.querySelector("select:open"))) return;
    data = waiting;
    waiting = null;
    const followed = GRID && STATE.bin === GRID.bins.length - 1;
    Object.assign(DATA, data);
    sums = {};
    if (followed && DATA.layers && DATA.layers.bins) STATE.bin = DATA.layers.bins.length - 1;
    rebuild();
  }

  window.loraTrain = Object.freeze({ append, update });
}
