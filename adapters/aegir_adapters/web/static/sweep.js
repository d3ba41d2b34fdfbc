// Fills the grids of a sweep as the server says: which element gets which class and title. What
// that looks like, and where it stands, the server has drawn.

const main = document.getElementById("sweep");
const lost = document.getElementById("lost");

function show({ marks, frames, said, legend, cells, status, badge }) {
  // Before its first line there was nothing to draw on.
  if (Object.keys(frames).some((id) => !document.getElementById(id))) location.reload();
  for (const [id, [kind, fill, title]] of Object.entries(marks)) {
    const cell = document.getElementById(id);
    if (!cell) continue;
    cell.setAttribute("class", kind);
    if (fill) cell.setAttribute("fill", fill);
    else cell.removeAttribute("fill");
    cell.firstElementChild.textContent = title;
  }
  for (const [id, { x, y }] of Object.entries(frames)) {
    document.getElementById(id)?.setAttribute("x", x);
    document.getElementById(id)?.setAttribute("y", y);
  }
  for (const [id, text] of Object.entries(said)) setText(document.getElementById(id), text);
  if (legend) showLegend(legend);
  const counter = document.getElementById("cells");
  if (counter) setText(counter, `${cells.toLocaleString("en")} of ${Number(counter.dataset.of).toLocaleString("en")}`);
  const word = document.getElementById("badge");
  word.className = `badge ${badge}`;
  setText(word, status);
}

function showLegend(svg) {
  // Escaped by the server, and the page's policy runs no script that comes in this way.
  const fresh = new DOMParser().parseFromString(svg, "text/html").querySelector("svg");
  if (fresh) document.getElementById("legend").replaceChildren(fresh);
}

function setText(element, text) {
  if (element && element.textContent !== text) element.textContent = text;
}

if (main.dataset.stream) {
  const stream = new EventSource(main.dataset.stream);
  stream.addEventListener("drawn", (event) => show(JSON.parse(event.data)));
  stream.addEventListener("open", () => { lost.hidden = true; });
  stream.addEventListener("error", () => { lost.hidden = false; });
  stream.addEventListener("over", () => {
    stream.close();
    // What is known only at the end: the noise floor, the time it took.
    location.reload();
  });
}
