// Draws the charts that the server described, and keeps the text beside them fresh.
// No chart logic here: BokehJS reads the data stream itself.

const REFRESH_MS = 2000;
const dark = matchMedia("(prefers-color-scheme: dark)");
const lost = document.getElementById("lost");

async function drawCharts() {
  const answer = await fetch(`charts/${dark.matches ? "dark" : "light"}.json`);
  if (answer.ok) await Bokeh.embed.embed_item(await answer.json());
}

async function refreshText() {
  if (document.hidden) return;
  try {
    const answer = await fetch("live");
    lost.hidden = answer.ok;
    if (answer.ok) showText(await answer.text());
  } catch {
    lost.hidden = false;
  }
}

function showText(html) {
  // Escaped by the server, and the page's policy runs no script that comes in this way.
  const fresh = new DOMParser().parseFromString(html, "text/html");
  for (const id of ["run", "table"]) {
    const shown = document.getElementById(id);
    const next = fresh.getElementById(id);
    // A reader who scrolls the table with the keyboard keeps the focus.
    if (!shown.isEqualNode(next) && !shown.contains(document.activeElement)) shown.replaceWith(next);
  }
}

dark.addEventListener("change", () => location.reload());
document.addEventListener("visibilitychange", refreshText);
setInterval(refreshText, REFRESH_MS);
drawCharts();
