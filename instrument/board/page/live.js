"use strict";
// The page of a run as a server gives it: the way back to the board, and rows as the run appends them. Rows are drawn by
// loraTrain.append; what they cannot show, and the verdict now and then, comes by asking for the page's data again.
{
  const words = (key) => DATA.text[LANGUAGE()][key],
    AGAIN = 20_000,
    LAYERS = 60_000,
    SHARE = 15; // a request is made again after so many times what it took
  let from = DATA.from,
    stream = null,
    over = !DATA.running,
    asking = false,
    next = performance.now() + AGAIN,
    layers = performance.now() + LAYERS;

  try {
    const lang = JSON.parse(localStorage.getItem("lora-train board") || "{}").lang;
    if (lang && !STATE.lang && lang !== LANGUAGE()) {
      remember({ lang });
      rebuild();
    }
  } catch (_) {
    /* private windows */
  }

  const place = el("span", { id: "feed", class: "dim", role: "status" });
  const bar = el("nav", { id: "board", "aria-label": words("board.live.navigation") });
  // the policy of the page allows no other style but its own
  bar.style.cssText = "max-width: 1240px; margin: 0 auto; padding: 8px 20px 0; display: flex; gap: 16px; font-size: 14px";
  if (DATA.back) {
    const link = el("a", { href: DATA.back }, "← " + words("board.live.back"));
    link.style.color = "var(--note)";
    bar.append(link);
  }
  bar.append(place);
  document.body.prepend(bar);
  const tell = (key) => {
    if (place.dataset.key === key) return;
    place.dataset.key = key;
    place.textContent = key ? words(key) : "";
  };

  function listen() {
    if (stream || over || asking || document.hidden) return;
    stream = new EventSource("events?from=" + from);
    stream.onopen = () => tell("");
    stream.onerror = () => tell("board.live.lost");
    stream.addEventListener("rows", (event) => {
      from = Number(event.lastEventId);
      if (!loraTrain.append(JSON.parse(event.data))) again();
      else if (performance.now() > next) again();
    });
    stream.addEventListener("again", () => again(true));
    stream.addEventListener("ended", () => {
      over = true;
      again(true);
    });
  }

  function hush() {
    if (stream) stream.close();
    stream = null;
  }

  async function again(whole) {
    hush();
    if (asking) return;
    asking = true;
    const began = performance.now(),
      layered = whole || began > layers;
    try {
      const answer = await fetch("data" + (layered ? "?layers=1" : ""));
      if (answer.ok) {
        const data = await answer.json();
        from = data.from;
        delete data.text;
        loraTrain.update(data);
        over ||= !data.running;
      }
    } catch (_) {
      tell("board.live.lost");
    }
    const now = performance.now(),
      took = (now - began) * SHARE;
    next = now + Math.max(AGAIN, took);
    if (layered) layers = now + Math.max(LAYERS, took);
    asking = false;
    if (over && !layered) again(true);
    else if (over) tell("board.live.over");
    else listen();
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) hush();
    else listen();
  });
  listen();
}
