// Keeps the page of a run fresh: one question every few seconds, never two at a time, none while
// nobody looks, and none once the run has ended.

const POLL_MS = 3000;
const PATIENCE_MS = 30000;
const BADGES = { active: "live", finished: "finished", crashed: "crashed", stalled: "stalled" };
const viewer = document.getElementById("viewer");
const lost = document.getElementById("lost");

let asking = false;
let ended = hasEnded(viewer.dataset.status);
let timer = 0;

async function ask() {
  clearTimeout(timer);
  if (asking || ended || document.hidden) return;
  asking = true;
  try {
    const patience = AbortSignal.timeout(PATIENCE_MS);
    const answer = await fetch(viewer.dataset.live, { signal: patience });
    lost.hidden = answer.ok;
    if (answer.ok) show(await answer.json());
  } catch {
    lost.hidden = false;
  }
  asking = false;
  wait();
}

function wait() {
  if (!ended) timer = setTimeout(ask, POLL_MS);
}

function show(live) {
  const badge = document.getElementById("badge");
  badge.className = `badge ${live.status}`;
  setText(badge, BADGES[live.status]);
  const note = document.getElementById("note");
  note.hidden = !live.note;
  setText(note, live.note ?? "");
  showFacts(live.facts);
  showChart(live.chart);
  ended = hasEnded(live.status);
}

function showFacts(facts) {
  const shown = document.getElementById("facts").children;
  facts.forEach(([term, text], place) => {
    setText(shown[place].firstElementChild, term);
    setText(shown[place].lastElementChild, text);
  });
}

function showChart(svg) {
  // Escaped by the server, parsed into a document that runs nothing, and the page's policy runs no
  // script that comes in this way.
  const fresh = new DOMParser().parseFromString(svg, "text/html").querySelector("svg");
  const chart = document.getElementById("chart");
  if (fresh && !fresh.isEqualNode(chart.firstElementChild)) chart.replaceChildren(fresh);
}

// What stays the same is not touched: screen readers would read it out again.
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function hasEnded(status) {
  return status === "finished" || status === "crashed";
}

document.addEventListener("visibilitychange", ask);
wait();
