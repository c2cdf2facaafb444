// What the images of a group are chosen by: one control for each of the page's filters. Whoever shows images listens for
// the event "images" and asks `isShown` (a truth value for each image, in the order of the data).
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const isShown = data.scans.map(() => true);
{
  const form = document.getElementById("filters");
  const few = 12; // so many values are chosen from a list; more are a range of numbers, or a text to be found
  const status = document.createElement("output");
  const add = (name, ...controls) => {
    const label = document.createElement("label");
    label.append(name, " ", ...controls);
    form.append(label);
  };
  const input = (type, name) => Object.assign(document.createElement("input"), { type, ariaLabel: name, step: "any" });
  const makers = {
    list(name, values) {
      const select = document.createElement("select");
      select.append(new Option("all", ""), ...values.map((value) => new Option(value, "=" + value)));
      add(name, select);
      return (value) => !select.value || select.value === "=" + value;
    },
    range(name) {
      const [low, high] = ["from", "to"].map((end) => Object.assign(input("number", `${name}, ${end}`), { placeholder: end }));
      add(name, low, high);
      return (value) => (low.value === "" || +value >= +low.value) && (high.value === "" || +value <= +high.value);
    },
    text(name) {
      const part = input("search", name);
      add(name, part);
      return (value) => value.toLowerCase().includes(part.value.toLowerCase());
    },
  };
  const filters = data.filters.map(({ name, values }) => {
    const known = [...new Set(values)].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
    const numbers = known.filter((value) => value !== "n/a");
    const kind = known.length <= few ? "list" : numbers.every((value) => value.trim() !== "" && isFinite(value)) ? "range" : "text";
    return { values, passes: makers[kind](name, known) };
  });
  const choose = () => {
    data.scans.forEach((_, at) => { isShown[at] = filters.every(({ values, passes }) => passes(values[at])); });
    const count = isShown.filter(Boolean).length;
    status.textContent = `${count} of ${isShown.length} images`;
    document.dispatchEvent(new Event("images"));
  };
  const reset = Object.assign(document.createElement("button"), { type: "reset", textContent: "Show all" });
  form.append(reset, status);
  form.hidden = filters.length === 0;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", choose);
  form.addEventListener("reset", () => setTimeout(choose));
  document.addEventListener("images", () => {
    for (const part of document.querySelectorAll("[data-scan]")) part.hidden = !isShown[part.dataset.scan];
  });
  document.addEventListener("DOMContentLoaded", choose);
}
