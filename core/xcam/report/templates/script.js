(() => {
  "use strict";
  const root = document.documentElement;
  const all = (what, within = document) => [...within.querySelectorAll(what)];
  const one = (what) => document.querySelector(what);
  root.classList.add("js");
  for (const part of all(".controls, .tabs")) part.hidden = false;

  const alpha = one("#alpha");
  const blend = () => {
    root.style.setProperty("--alpha", String(alpha.value / 100));
    one("#alpha-value").textContent = `${alpha.value}%`;
    alpha.setAttribute("aria-valuetext", `${alpha.value} percent`);
  };
  if (alpha) {
    alpha.addEventListener("input", blend);
    blend();
  }

  // Blinking: the models of every image at one position, one after the other.
  const stacks = all(".panes").map((panes) => all(".pane.model", panes));
  const pause = one("#pause");
  let shown = 0, timer = 0;
  const show = (k) => {
    shown = k;
    for (const panes of stacks) panes.forEach((pane, n) => pane.classList.toggle("current", n === k % panes.length));
  };
  const stop = () => { clearInterval(timer); timer = 0; if (pause) pause.textContent = "Resume"; };
  const start = () => { stop(); timer = setInterval(() => show(shown + 1), 800); if (pause) pause.textContent = "Pause"; };
  const view = (name) => {
    root.dataset.view = name;
    one(".blinking").hidden = name !== "blink";
    stop();
    if (name === "blink") {
      show(0);
      if (!matchMedia("(prefers-reduced-motion: reduce)").matches) start();
    }
  };
  for (const choice of all('input[name="view"]')) {
    choice.addEventListener("change", () => { if (choice.checked) view(choice.value); });
    if (choice.checked && choice.value !== "side") view(choice.value); // a browser that remembers a form's state
  }
  if (pause) {
    pause.addEventListener("click", () => (timer ? stop() : start()));
    one("#next").addEventListener("click", () => { stop(); show(shown + 1); });
  }

  const cards = all("details.card"), unfold = one("#unfold");
  const label = () => { if (unfold) unfold.textContent = cards.every((c) => c.open) ? "Fold all" : "Unfold all"; };
  if (unfold) unfold.addEventListener("click", () => { const open = !cards.every((c) => c.open); for (const c of cards) c.open = open; });
  for (const card of cards) card.addEventListener("toggle", label);
  label();

  // Tabs as the ARIA practices describe them: arrows, Home and End move and choose.
  for (const list of all('[role="tablist"]')) {
    const tabs = all('[role="tab"]', list);
    const choose = (k, focus) => tabs.forEach((tab, n) => {
      tab.setAttribute("aria-selected", String(n === k));
      tab.tabIndex = n === k ? 0 : -1;
      document.getElementById(tab.getAttribute("aria-controls")).hidden = n !== k;
      if (focus && n === k) tab.focus();
    });
    tabs.forEach((tab, k) => {
      tab.addEventListener("click", () => choose(k, false));
      tab.addEventListener("keydown", (event) => {
        const n = tabs.length;
        const to = { ArrowRight: (k + 1) % n, ArrowLeft: (k + n - 1) % n, Home: 0, End: n - 1 }[event.key];
        if (to === undefined) return;
        event.preventDefault();
        choose(to, true);
      });
    });
    choose(0, false);
  }

  // The layer under the pointer or the finger, as text under its chart.
  for (const plot of all(".plot")) {
    const text = plot.querySelector(".readout");
    for (const chart of all(".chart", plot)) {
      const dots = all(".dot", chart);
      const positions = dots.map((dot) => Number(dot.getAttribute("cx")));
      const clear = () => { for (const dot of dots) dot.classList.remove("near"); };
      const point = (event) => {
        const box = chart.getBoundingClientRect();
        const x = (event.clientX - box.left) / box.width * chart.viewBox.baseVal.width;
        let best = 0;
        positions.forEach((position, k) => { if (Math.abs(position - x) < Math.abs(positions[best] - x)) best = k; });
        clear();
        dots[best].classList.add("near");
        text.textContent = dots[best].textContent;
      };
      chart.addEventListener("pointermove", point);
      chart.addEventListener("pointerdown", point);
      chart.addEventListener("pointerleave", () => { clear(); text.textContent = text.dataset.rest; });
    }
  }

  // On paper nothing can be unfolded.
  let closed = [];
  addEventListener("beforeprint", () => { closed = all("details:not([open])"); for (const d of closed) d.open = true; });
  addEventListener("afterprint", () => { for (const d of closed) d.open = false; });
})();
