// Keeps the list of sweeps fresh. What somebody types is left alone.

let shown = "";

async function showList(answer) {
  const news = JSON.stringify(answer);
  if (news === shown) return;
  const drawn = await fetch("sweeps");
  if (!drawn.ok) return;
  shown = news;
  // Escaped by the server, and the page's policy runs no script that comes in this way.
  const fresh = new DOMParser().parseFromString(await drawn.text(), "text/html");
  for (const id of ["making", "list"]) {
    const old = document.getElementById(id);
    const next = fresh.getElementById(id);
    if (!old.isEqualNode(next) && !old.contains(document.activeElement)) old.replaceWith(next);
  }
  showError(answer.starting?.error ?? "", fresh);
}

// An error that came after the form was sent stands beside its field.
function showError(error, fresh) {
  const form = document.getElementById("order");
  const next = fresh.getElementById("order");
  if (!form || !next || !error || error === page.dataset.error) return;
  page.dataset.error = error;
  const typed = (field) => ("defaultValue" in field ? field.value !== field.defaultValue : false);
  if (![...form.elements].some(typed)) form.replaceWith(next);
}

keepFresh(showList);
