// Rate the images of the contact sheet by keys: p pass, f fail, u none, n a note, arrows to move, c the contours.
// Ratings stay in the browser where it lets a file keep something; "Download" makes a table of them.
"use strict";
{
  const cards = [...document.querySelectorAll("figure[data-scan]")];
  const store = "ratings of " + document.title;
  let ratings = {};
  try { ratings = JSON.parse(localStorage.getItem(store)) ?? {}; } catch { /* this browser keeps nothing for a file */ }
  const status = document.getElementById("rated"), download = document.getElementById("download");
  const name = (card) => data.scans[card.dataset.scan];
  const show = (card) => {
    const { rating = "", note = "" } = ratings[name(card)] ?? {};
    card.dataset.rating = rating;
    card.querySelector(".rating").textContent = rating ? "rated " + rating : "not rated";
    card.querySelector("input").value = note;
  };
  const toTable = () => {
    const cell = (text) => (text ?? "").replace(/\s+/g, " ").trim() || "n/a";
    const rows = data.scans.map((scan, at) => [...data.labels[at], scan, data.verdicts[at], ratings[scan]?.rating, ratings[scan]?.note]);
    return [["participant_id", "session_id", "scan", "verdict", "rating", "note"], ...rows.map((row) => row.map(cell))]
      .map((row) => row.join("\t") + "\n").join("");
  };
  const update = () => {
    const count = (word) => Object.values(ratings).filter(({ rating }) => rating === word).length;
    status.textContent = `${count("pass")} pass, ${count("fail")} fail, of ${data.scans.length} images`;
    download.href = "data:text/tab-separated-values;charset=utf-8," + encodeURIComponent(toTable());
  };
  const rate = (card, change) => {
    ratings[name(card)] = { ...ratings[name(card)], ...change };
    try { localStorage.setItem(store, JSON.stringify(ratings)); } catch { /* see above */ }
    show(card);
    update();
  };
  const go = (card, step) => {
    const there = cards.filter((other) => !other.hidden);
    const next = there[there.indexOf(card) + step];
    next?.focus();
    next?.scrollIntoView({ block: "nearest" });
  };
  const keys = {
    p(card) { rate(card, { rating: "pass" }); go(card, 1); },
    f(card) { rate(card, { rating: "fail" }); go(card, 1); },
    u(card) { rate(card, { rating: "" }); },
    n(card) { card.querySelector("input").focus(); },
    ArrowRight(card) { go(card, 1); },
    ArrowLeft(card) { go(card, -1); },
  };
  for (const card of cards) {
    card.tabIndex = 0;
    show(card);
    const note = card.querySelector("input");
    note.addEventListener("input", () => rate(card, { note: note.value }));
    note.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter" || event.key === "Escape") card.focus();
    });
    for (const button of card.querySelectorAll("button")) button.addEventListener("click", () => keys[button.dataset.key](card));
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, button, a")) return;
    if (event.key === "c") return void document.documentElement.classList.toggle("bare");
    const card = event.target.closest("figure[data-scan]");
    if (keys[event.key] && (card || cards.length)) {
      event.preventDefault();
      if (card) keys[event.key](card);
      else cards.find((other) => !other.hidden)?.focus(); // the first key only chooses where to begin
    }
  });
  document.getElementById("contours").addEventListener("change", (event) => document.documentElement.classList.toggle("bare", !event.target.checked));
  update();
}
