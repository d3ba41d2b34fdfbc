// Puts the metrics of a run on their page.

const TEXTS = ["title", "text", "at", "word", "range", "meaning"];

function show({ status, badge, panels }) {
  showBadge(status, badge);
  showNote(panels.note);
  setText(document.getElementById("summary"), panels.summary);
  const alarms = document.getElementById("alarms");
  alarms.hidden = !panels.alarms.length;
  arrange(alarms, "alarm-template", panels.alarms, showAlarm);
  arrange(document.getElementById("groups"), "group-template", panels.groups, showGroup);
}

function showAlarm(item, alarm) {
  const link = item.firstElementChild;
  setAttribute(link, "href", `#${alarm.id}`);
  setText(link, alarm.name);
}

function showGroup(section, group) {
  setAttribute(section, "id", group.id);
  setText(section.querySelector("h2"), group.name);
  arrange(section.querySelector(".panels"), "panel-template", group.panels, showPanel);
}

function showPanel(article, panel) {
  setAttribute(article, "id", panel.id);
  setAttribute(article, "class", `panel ${panel.verdict ?? ""}`);
  setAttribute(article.querySelector(".word"), "class", `word ${panel.verdict ?? ""}`);
  for (const name of TEXTS) setText(article.querySelector(`.${name}`), panel[name]);
  showChart(article.querySelector("figure"), panel.chart);
}

// One element for each item, in their order. Those that are there stay where they are, so that a
// reader keeps the place and the focus.
function arrange(parent, template, items, fill) {
  const there = new Map([...parent.children].map((element) => [element.dataset.of, element]));
  items.forEach((item, place) => {
    const element = there.get(item.id) ?? made(template);
    there.delete(item.id);
    setAttribute(element, "data-of", item.id);
    fill(element, item);
    if (parent.children[place] !== element) parent.insertBefore(element, parent.children[place]);
  });
  for (const gone of there.values()) gone.remove();
}

function setAttribute(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

function made(template) {
  return document.getElementById(template).content.firstElementChild.cloneNode(true);
}

keepFresh(show);
