"use strict";
// The dialog in which a run gets its tags and its note; what was kept is what the server says it kept.
function edit(id) {
  const row = ROWS.get(id),
    tags = el("input", { id: "tags", value: row.tags.join(", "), autocomplete: "off" }),
    note = el("textarea", { id: "note", maxlength: 2000 }, row.note),
    problem = el("p", { class: "problem", role: "alert" });
  const save = async (event) => {
    event.preventDefault();
    try {
      const answer = await fetch("marks", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ id, tags: tags.value.split(","), note: note.value }),
      });
      const found = await answer.json();
      if (!answer.ok) throw new Error(found.error);
      Object.assign(row, found);
      show(row);
      arrange();
      box.close();
    } catch (error) {
      problem.textContent = error.message || t("board.page.lost");
    }
  };
  const box = el(
    "dialog",
    { "aria-labelledby": "editing", onclose: () => box.remove() },
    el(
      "form",
      { onsubmit: save },
      el("h2", { id: "editing" }, row.name),
      el("label", { for: "tags" }, t("board.page.tags")),
      tags,
      el("label", { for: "note" }, t("board.page.note")),
      note,
      problem,
      el(
        "div",
        { class: "buttons" },
        el("button", { type: "button", onclick: () => box.close() }, t("board.page.cancel")),
        el("button", { type: "submit", class: "go" }, t("board.page.save")),
      ),
    ),
  );
  document.body.append(box);
  box.showModal();
}
