// The page needs no script; with one, links open the folds they lead into, and a section's folds open together.
(() => {
  const reveal = () => {
    let node = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
  };
  addEventListener("hashchange", reveal);
  reveal();
  for (const section of document.querySelectorAll("[data-folds]")) {
    const folds = [...section.querySelectorAll("details.row")];
    if (folds.length < 2) continue;
    const button = document.createElement("button");
    button.type = "button";
    const label = () => { button.textContent = folds.every((fold) => fold.open) ? "Close all" : "Open all"; };
    button.addEventListener("click", () => {
      const open = !folds.every((fold) => fold.open);
      for (const fold of folds) fold.open = open;
      label();
    });
    for (const fold of folds) fold.addEventListener("toggle", label);
    label();
    section.querySelector("h2").after(button);
  }
})();
