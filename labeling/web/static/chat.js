// Streams the answers that the page waits for. Without this script, prompts are stored but not answered.
const said = document.getElementById("status"), ask = document.getElementById("ask"), box = document.getElementById("prompt");
const buttons = ask ? [...ask.querySelectorAll("button")] : [];
let streams = 0;

function ready() { // leaving the page would stop the answers
  for (const button of buttons) button.disabled = streams > 0;
}
function stream(turn) {
  const answers = [...turn.querySelectorAll(".answer")], stop = turn.querySelector(".stop"), source = new EventSource(turn.dataset.stream);
  const part = (answer, name) => answer.querySelector(`.${name}`);
  let left = new Set(answers.keys()), failed = false;
  streams += 1;
  ready();
  turn.classList.add("unfinished");
  stop.hidden = false;
  said.textContent = "Writing.";
  function end() {
    const focused = stop.contains(document.activeElement);
    source.close();
    streams -= 1;
    ready();
    turn.classList.toggle("unfinished", failed);
    stop.hidden = true;
    if (focused) turn.focus();
  }
  source.addEventListener("open", () => { // also after the connection was lost
    left = new Set(answers.keys());
    for (const answer of answers) {
      part(answer, "text").textContent = "";
      part(answer, "state").textContent = "waiting";
    }
  });
  source.addEventListener("part", (event) => {
    const { place, text } = JSON.parse(event.data);
    part(answers[place], "text").textContent += text;
    part(answers[place], "state").textContent = "writing";
  });
  source.addEventListener("end", (event) => {
    const { place, text, state } = JSON.parse(event.data);
    part(answers[place], "text").textContent = text;
    part(answers[place], "state").textContent = state === "complete" ? "" : state;
    left.delete(place);
    if (left.size) return;
    end();
    if (!failed) said.textContent = answers.length > 1 ? "Both answers have ended." : "The answer has ended.";
  });
  source.addEventListener("problem", (event) => {
    const { place, text } = JSON.parse(event.data);
    part(answers[place], "state").textContent = said.textContent = text;
    failed = true;
    left.delete(place);
    if (!left.size) end();
  });
  source.addEventListener("error", () => {
    if (source.readyState !== EventSource.CLOSED) return; // it connects again by itself
    failed = true;
    end();
    said.textContent = "The connection was lost. Reload the page.";
  });
  stop.addEventListener("submit", (event) => {
    event.preventDefault();
    fetch(stop.action, { method: "POST", body: new URLSearchParams(new FormData(stop)) });
  });
}
if (ask) {
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.isComposing && !streams) ask.requestSubmit();
  });
  ask.addEventListener("submit", () => { for (const button of buttons) button.disabled = true; });
  addEventListener("pageshow", ready);
}
for (const turn of document.querySelectorAll("[data-stream]")) stream(turn);
