"use strict";
// A run that has not begun: the page is asked for again once it has.
{
  const said = JSON.parse(document.getElementById("data").textContent);
  const lang = (navigator.language || "").toLowerCase().startsWith("ko") ? "ko" : "en";
  document.documentElement.lang = lang;
  document.querySelector("[role=status]").textContent = said[lang];
  const stream = new EventSource("events");
  stream.addEventListener("begun", () => {
    stream.close();
    location.reload();
  });
}
