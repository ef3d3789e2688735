// What is folded away opens where a link leads, and on paper.
(() => {
  const folds = [...document.querySelectorAll("details")];
  const show = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const fold = target && target.closest("details");
    if (fold) { fold.open = true; target.scrollIntoView(); }
  };
  addEventListener("hashchange", show);
  show();
  let opened = [];
  addEventListener("beforeprint", () => { opened = folds.filter((fold) => !fold.open); opened.forEach((fold) => { fold.open = true; }); });
  addEventListener("afterprint", () => { opened.forEach((fold) => { fold.open = false; }); });
})();
