"use strict";

/* A slider shows one frame of a series, and says which. */
for (const figure of document.querySelectorAll(".gallery")) {
  const input = figure.querySelector("input");
  const frames = figure.querySelectorAll(".frame");
  const show = () => {
    const chosen = frames[input.value];
    for (const frame of frames) frame.hidden = frame !== chosen;
    figure.querySelector(".now").textContent = chosen.dataset.name;
    input.setAttribute("aria-valuetext", chosen.dataset.name);
  };
  if (input) {
    input.addEventListener("input", show);
    show(); /* a browser may remember where it stood */
  }
}

/* The border between two pictures follows its slider, or a pointer on the pictures. */
for (const figure of document.querySelectorAll(".compare")) {
  const input = figure.querySelector("input");
  const pair = figure.querySelector(".pair");
  const show = () => {
    pair.style.setProperty("--border", `${input.value}%`);
    input.setAttribute("aria-valuetext", `${100 - input.value} % ${input.dataset.name}`);
  };
  const follow = (event) => {
    if (!event.buttons) return;
    const box = pair.getBoundingClientRect();
    input.value = (100 * (event.clientX - box.left)) / box.width;
    show();
  };
  input.addEventListener("input", show);
  pair.addEventListener("pointerdown", follow);
  pair.addEventListener("pointermove", follow);
  show();
}
