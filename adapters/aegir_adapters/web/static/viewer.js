// Puts where a run stands on its page.

const BADGES = { active: "live", finished: "finished", crashed: "crashed", stalled: "stalled" };

function show(live) {
  showBadge(live.status, BADGES[live.status]);
  showNote(live.note);
  showFacts(live.facts);
  showChart(document.getElementById("chart"), live.chart);
}

function showFacts(facts) {
  const shown = document.getElementById("facts").children;
  facts.forEach(([term, text], place) => {
    setText(shown[place].firstElementChild, term);
    setText(shown[place].lastElementChild, text);
  });
}

keepFresh(show);
