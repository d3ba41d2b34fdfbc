// Keeps a page fresh: one question every few seconds, never two at a time, none while nobody looks,
// and none once the run has ended.

const POLL_MS = 3000;
const PATIENCE_MS = 30000;
const page = document.querySelector("[data-live]");
const lost = document.getElementById("lost");

let asking = false;
let ended = hasEnded(page.dataset.status);
let timer = 0;
let showAnswer = () => {};

// Hands every answer to `show`, which puts it on the page.
function keepFresh(show) {
  showAnswer = show;
  document.addEventListener("visibilitychange", ask);
  wait();
}

async function ask() {
  clearTimeout(timer);
  if (asking || ended || document.hidden) return;
  asking = true;
  try {
    const patience = AbortSignal.timeout(PATIENCE_MS);
    const answer = await fetch(page.dataset.live, { signal: patience });
    lost.hidden = answer.ok;
    if (answer.ok) {
      const fresh = await answer.json();
      showAnswer(fresh);
      ended = hasEnded(fresh.status);
    }
  } catch {
    lost.hidden = false;
  }
  asking = false;
  wait();
}

function wait() {
  if (!ended) timer = setTimeout(ask, POLL_MS);
}

function hasEnded(status) {
  return status === "finished" || status === "crashed";
}

function showBadge(status, word) {
  const badge = document.getElementById("badge");
  badge.className = `badge ${status}`;
  setText(badge, word);
}

function showNote(text) {
  const note = document.getElementById("note");
  note.hidden = !text;
  setText(note, text ?? "");
}

function showChart(figure, svg) {
  // Escaped by the server, parsed into a document that runs nothing, and the page's policy runs no
  // script that comes in this way.
  const fresh = new DOMParser().parseFromString(svg, "text/html").querySelector("svg");
  if (fresh && !fresh.isEqualNode(figure.firstElementChild)) figure.replaceChildren(fresh);
}

// What stays the same is not touched: screen readers would read it out again.
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
