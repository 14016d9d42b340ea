// Plots of the last hour as SVG.

import { h, svg } from "./dom.js";
import { clock } from "./format.js";

const HEIGHT = 150;
const LEFT = 62;
const RIGHT = 8;
const TOP = 8;
const BOTTOM = 22;
const HOUR = 3600;

/** Steps of the vertical axis: 1, 2 and 5 times a power of ten. */
function top(highest) {
  if (highest <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(highest));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= highest);
}

/**
 * A plot with a title and a legend. `lines` are `{ name, kind, value(point) }`; `text(number)` writes one.
 * `update(points, interval)` draws it.
 */
export function chart({ title, lines, text }) {
  const picture = svg("svg", { class: "chart", role: "img", height: HEIGHT, focusable: "false" });
  const legend = h("p", { class: "legend" });
  const element = h("section", { class: "card chart-card" }, h("h2", {}, title), picture, legend);
  let drawn = { points: [], interval: 10 };
  let pointed = null;
  new ResizeObserver(() => draw()).observe(element);
  picture.addEventListener("pointermove", (event) => {
    pointed = event.offsetX;
    draw();
  });
  picture.addEventListener("pointerleave", () => {
    pointed = null;
    draw();
  });

  function draw() {
    const width = Math.max(240, picture.clientWidth || 600);
    const { points, interval } = drawn;
    const end = points.length ? points[points.length - 1].at : Date.now() / 1000;
    const begin = end - HOUR;
    const highest = top(Math.max(0, ...points.flatMap((point) => lines.map((line) => line.value(point)))));
    const x = (at) => LEFT + ((at - begin) / HOUR) * (width - LEFT - RIGHT);
    const y = (value) => HEIGHT - BOTTOM - (value / highest) * (HEIGHT - TOP - BOTTOM);
    picture.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    picture.replaceChildren();
    for (const value of [0, highest / 2, highest]) {
      picture.append(
        svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
        svg("text", { class: "axis", x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, text(value)),
      );
    }
    const step = width < 420 ? 1800 : 900;
    for (let at = Math.ceil(begin / step) * step; at <= end; at += step) {
      const anchor = x(at) > width - 24 ? "end" : x(at) < LEFT + 16 ? "start" : "middle";
      picture.append(
        svg("text", { class: "axis", x: x(at), y: HEIGHT - 5, "text-anchor": anchor }, clock(at)),
      );
    }
    for (const line of lines) {
      const parts = runs(points, interval).map((run) =>
        run.map((point) => [x(point.at), y(line.value(point))]),
      );
      for (const run of parts) {
        const path = run.map(([px, py], at) => `${at ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join("");
        const [from, to] = [run[0][0].toFixed(1), run[run.length - 1][0].toFixed(1)];
        picture.append(
          svg("path", { class: `area ${line.kind}`, d: `${path}L${to} ${y(0)}L${from} ${y(0)}Z` }),
          svg("path", { class: `line ${line.kind}`, d: path }),
        );
      }
    }
    const chosen = pointed === null ? points[points.length - 1] : nearest(points, x, pointed);
    if (chosen && pointed !== null) {
      picture.append(svg("line", { class: "cross", x1: x(chosen.at), x2: x(chosen.at), y1: TOP, y2: y(0) }));
    }
    const values = lines.map((line) => [line, chosen ? text(line.value(chosen)) : "–"]);
    legend.replaceChildren(
      ...values.map(([line, value]) =>
        h("span", {}, h("i", { class: `swatch ${line.kind}` }), `${line.name} `, h("b", {}, value)),
      ),
      h("span", { class: "muted" }, chosen ? `at ${clock(chosen.at)}` : "no points yet"),
    );
    const spoken = values.map(([line, value]) => `${line.name} ${value}`).join(", ");
    picture.setAttribute("aria-label", `${title}: ${spoken}; the axis ends at ${text(highest)}`);
  }

  return {
    element,
    update(points, interval) {
      drawn = { points, interval };
      draw();
    },
  };
}

/** The points in groups without gaps. A gap is a time in which Redis was away. */
function runs(points, interval) {
  const all = [];
  for (const point of points) {
    const run = all[all.length - 1];
    if (run && point.at - run[run.length - 1].at <= 3 * interval) run.push(point);
    else all.push([point]);
  }
  return all;
}

function nearest(points, x, place) {
  const far = (point) => Math.abs(x(point.at) - place);
  return points.reduce((best, point) => (best && far(best) <= far(point) ? best : point), null);
}
