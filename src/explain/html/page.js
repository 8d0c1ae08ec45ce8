"use strict";
// Without this script everything is there but the pictures' tips and links: bucket tabs and fusions work by themselves.
const tip = document.getElementById("tip");
const show = (node, x, y) => {
  tip.textContent = node.dataset.tip;
  tip.hidden = false;
  tip.style.left = Math.max(4, Math.min(x + 14, innerWidth - tip.offsetWidth - 8)) + "px";
  tip.style.top = Math.max(4, Math.min(y + 16, innerHeight - tip.offsetHeight - 8)) + "px";
};
const hide = () => { tip.hidden = true; };
// The fusion of a node in the form that is shown.
const fusionOf = node => (node.dataset.groups || "").split(" ").map(id => document.getElementById(id)).find(f => f && f.offsetParent);
const pick = (section, fusion) => {
  section.querySelectorAll(".picked").forEach(n => n.classList.remove("picked"));
  section.classList.toggle("dim", !!fusion);
  if (!fusion) return;
  section.querySelectorAll("[data-groups]").forEach(n => {
    if (n.dataset.groups.split(" ").includes(fusion.id)) n.classList.add("picked");
  });
};
for (const section of document.querySelectorAll("section.class")) {
  section.querySelectorAll("details.fusion").forEach(f => f.addEventListener("toggle", () => {
    const open = [...section.querySelectorAll("details.fusion[open]")].find(f => f.offsetParent);
    pick(section, open);
  }));
  section.querySelectorAll("input[type=radio]").forEach(r => r.addEventListener("change", () => {
    section.querySelectorAll("details.fusion[open]").forEach(f => { f.open = false; });
  }));
  for (const svg of section.querySelectorAll("svg.graph")) {
    const nodes = [...svg.querySelectorAll(".node")];
    nodes.forEach((node, i) => {
      node.addEventListener("pointermove", e => show(node, e.clientX, e.clientY));
      node.addEventListener("pointerleave", hide);
      node.addEventListener("focus", () => { const r = node.getBoundingClientRect(); if (node.matches(":focus-visible")) show(node, r.right, r.top); });
      node.addEventListener("blur", hide);
      const open = () => {
        const fusion = fusionOf(node);
        if (!fusion) return;
        fusion.open = !fusion.open;
        fusion.scrollIntoView({ block: "nearest" });
      };
      node.addEventListener("click", open);
      node.addEventListener("keydown", e => {
        const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[e.key];
        if (e.key === "Enter" || e.key === " ") open();
        else if (e.key === "Escape") { hide(); return; }
        else if (step && nodes[i + step]) {
          node.tabIndex = -1;
          nodes[i + step].tabIndex = 0;
          nodes[i + step].focus();
        } else return;
        e.preventDefault();
      });
    });
  }
}
