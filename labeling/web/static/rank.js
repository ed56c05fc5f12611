// The list in which answers are ranked, after the W3C's rearrangeable listbox. It drives the rank fields of the form.
const order = document.getElementById("order"), said = document.getElementById("status");
const answers = [...document.querySelectorAll(".answer")].map((element) => ({
  element, field: element.querySelector("select"), name: element.getAttribute("aria-label"),
  words: element.querySelector(".text").textContent.trim().slice(0, 120), tied: false, ranked: false,
}));
let items = [], chosen = answers[0], held = null;

function read() { // from the rank fields to the list
  const rank = (one) => Number(one.field.value) || 1e9;
  items = [...answers].sort((a, b) => rank(a) - rank(b));
  items.forEach((one, place) => {
    one.ranked = one.field.value !== "";
    one.tied = one.ranked && place > 0 && rank(items[place - 1]) === rank(one);
  });
}
function write() { // from the list to the rank fields
  items = [...items.filter((one) => one.ranked), ...items.filter((one) => !one.ranked)];
  let rank = 0;
  items.forEach((one, place) => {
    if (place === 0 || !one.ranked) one.tied = false;
    if (one.ranked && !one.tied) rank += 1;
    one.field.value = one.ranked ? rank : "";
  });
}
function draw() {
  write();
  items.forEach((one, place) => {
    if (!one.line) {
      one.line = Object.assign(document.createElement("li"), { id: `order-${one.element.id}` });
      one.line.setAttribute("role", "option");
      one.line.append(...["rank", "name", "words"].map((kind) => Object.assign(document.createElement("span"), { className: kind })));
      one.line.children[1].textContent = one.name;
      one.line.children[2].textContent = one.words;
    }
    one.line.firstChild.textContent = one.field.value ? `${one.field.value}.` : "none";
    one.line.className = one.tied ? "tied" : one.ranked ? "" : "unranked";
    one.line.setAttribute("aria-selected", String(one === chosen));
    if (order.children[place] !== one.line) order.insertBefore(one.line, order.children[place] || null);
  });
  order.setAttribute("aria-activedescendant", chosen.line.id);
}
function say(one) {
  const same = items.filter((other) => other !== one && other.ranked && other.field.value === one.field.value);
  const tie = same.length ? `, tied with ${same.map((other) => other.name).join(" and ")}` : "";
  said.textContent = one.ranked ? `${one.name} has rank ${one.field.value}${tie}.` : `${one.name} has no rank.`;
}
function move(one, to) { // ranks all answers above its new place, too
  const from = items.indexOf(one), after = items[from + 1];
  if (after && after.tied && !one.tied) after.tied = false; // the one behind the head of a tie becomes its head
  items.splice(from, 1);
  items.splice(to, 0, one);
  one.tied = false;
  const behind = items[to + 1];
  if (behind && behind.tied) { one.tied = to > 0; } // moved into the middle of a tie
  items.slice(0, Math.max(to, from) + 1).forEach((other) => { other.ranked = true; });
  draw();
  say(one);
}
order.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey) return;
  const step = { ArrowUp: -1, ArrowDown: 1 }[event.key], place = items.indexOf(chosen), key = event.key.toLowerCase();
  if (step) {
    event.preventDefault();
    const to = Math.max(0, Math.min(items.length - 1, place + step));
    if (!event.altKey) { chosen = items[to]; draw(); } else if (to !== place) move(chosen, to);
  } else if (key === "t" && place > 0) {
    items.slice(0, place + 1).forEach((other) => { other.ranked = true; });
    chosen.tied = !chosen.tied;
    draw();
    say(chosen);
  } else if (key === "n") {
    const next = items[place + 1];
    if (next && next.tied && !chosen.tied) next.tied = false;
    chosen.ranked = !chosen.ranked;
    chosen.tied = false;
    draw();
    say(chosen);
  }
});
order.addEventListener("pointerdown", (event) => {
  const line = event.target.closest("li");
  if (!line) return;
  held = chosen = items.find((one) => one.line === line);
  draw();
  order.setPointerCapture(event.pointerId);
});
order.addEventListener("pointermove", (event) => {
  if (!held) return;
  const others = items.filter((one) => one !== held);
  const below = others.findIndex((one) => {
    const box = one.line.getBoundingClientRect();
    return event.clientY < box.top + box.height / 2;
  });
  const to = below < 0 ? others.length : below;
  if (to !== items.indexOf(held)) move(held, to);
});
for (const kind of ["pointerup", "pointercancel"]) order.addEventListener(kind, () => { held = null; });
for (const one of answers) one.field.addEventListener("change", () => { read(); draw(); });

// Words that no other answer has.
const texts = answers.map((one) => one.element.querySelector(".text"));
const words = texts.map((element) => new Set(element.textContent.toLowerCase().match(/[\p{L}\p{N}]+/gu) || []));
texts.forEach((element, place) => {
  const alone = (part) => words[place].has(part.toLowerCase()) && !words.some((other, number) => number !== place && other.has(part.toLowerCase()));
  const parts = element.textContent.split(/([\p{L}\p{N}]+)/u);
  element.replaceChildren(...parts.map((part) => (alone(part) ? Object.assign(document.createElement("mark"), { textContent: part }) : part)));
});
document.getElementById("marks").addEventListener("change", (event) => {
  document.querySelector(".answers").classList.toggle("marked", event.target.checked);
});
order.hidden = false;
read();
draw();
