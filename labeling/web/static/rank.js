// The list in which answers are ranked, after the W3C's rearrangeable listbox. It drives the rank fields of the form.
const order = document.getElementById("order"), said = document.getElementById("status"), count = document.getElementById("count");
const answers = [...document.querySelectorAll(".answer")].map((element) => ({
  element, field: element.querySelector("select"), name: element.getAttribute("aria-label"),
  words: element.querySelector(".text").textContent.trim().slice(0, 120), tied: false, ranked: false,
}));
const SLACK = 5; // pixels that a click may move without being a drag
let items = [], chosen = answers[0], held = null, from = 0, dragged = false;

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
  draw();
}
function draw() {
  const ranked = items.filter((one) => one.ranked).length;
  count.textContent = `${ranked} of ${items.length} answers are ranked.`;
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
function leave(one) { // the one behind the head of a tie becomes its head
  const next = items[items.indexOf(one) + 1];
  if (next && next.tied && !one.tied) next.tied = false;
  one.tied = false;
}
function move(one, to) { // among the ranked answers; the others stay without a rank
  leave(one);
  items.splice(items.indexOf(one), 1);
  const count = items.filter((other) => other.ranked).length;
  to = Math.min(to, count);
  items.splice(to, 0, one);
  one.ranked = true;
  one.tied = Boolean(items[to + 1] && items[to + 1].tied); // moved into the middle of a tie
  write();
  say(one);
}
order.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey) return;
  const step = { ArrowUp: -1, ArrowDown: 1 }[event.key], place = items.indexOf(chosen), key = event.key.toLowerCase();
  if (step) {
    event.preventDefault();
    const to = Math.max(0, Math.min(items.length - 1, place + step));
    if (!event.altKey) { chosen = items[to]; draw(); } else if (to !== place || !chosen.ranked) move(chosen, to);
  } else if (key === "t") {
    const above = items[place - 1];
    if (!above || !above.ranked) { said.textContent = "There is no ranked answer above."; return; }
    const tie = !chosen.tied;
    if (tie) leave(chosen);
    chosen.ranked = true;
    chosen.tied = tie;
    write();
    say(chosen);
  } else if (key === "n") {
    leave(chosen);
    chosen.ranked = !chosen.ranked;
    write();
    say(chosen);
  }
});
order.addEventListener("pointerdown", (event) => {
  const line = event.target.closest("li");
  if (!line || event.button !== 0) return;
  held = chosen = items.find((one) => one.line === line);
  from = event.clientY;
  dragged = false;
  draw();
  order.setPointerCapture(event.pointerId);
});
order.addEventListener("pointermove", (event) => {
  if (!held) return;
  dragged ||= Math.abs(event.clientY - from) > SLACK;
  if (!dragged) return;
  const others = items.filter((one) => one !== held);
  const below = others.findIndex((one) => {
    const box = one.line.getBoundingClientRect();
    return event.clientY < box.top + box.height / 2;
  });
  const to = Math.min(below < 0 ? others.length : below, others.filter((one) => one.ranked).length);
  if (to !== items.indexOf(held) || !held.ranked) move(held, to);
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
addEventListener("pageshow", () => { read(); draw(); }); // after the browser has restored the fields
