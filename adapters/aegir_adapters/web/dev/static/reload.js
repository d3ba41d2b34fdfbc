// Loads the page again when the files it is made of change, and when a gateway that was away is
// back. Only the development server adds this to its pages.
(() => {
  const RETRY_MS = 1000;
  const { version, away } = document.currentScript.dataset;
  let changes = null;

  // A browser opens six connections to a host, and a page that nobody sees needs none of them.
  function listen() {
    changes?.close();
    changes = document.hidden ? null : new EventSource("/.aegir/changes");
    changes?.addEventListener("message", ({ data }) => {
      if (data !== version) location.reload();
    });
  }

  async function retry() {
    try {
      const answer = await fetch(location.href, { method: "HEAD", cache: "no-store" });
      if (answer.status !== 502) return location.reload();
    } catch {
      // The development server itself is away.
    }
    setTimeout(retry, RETRY_MS);
  }

  document.addEventListener("visibilitychange", listen);
  listen();
  if (away) setTimeout(retry, RETRY_MS);
})();
