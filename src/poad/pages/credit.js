// Credit for the tokens of one episode: the recursion of poad.credit, repeated in the page so that
// its rates can be moved. tests/pages compares it with poad.credit for every method.
//
//   δ = r + γ′·v′ − v        A = δ + γ′·λ′·A′        target = A + v

"use strict";

/* Lay the turns of an episode end to end: a column of each fact, one entry for each token. */
function layOut(episode) {
  const flat = { turn: [], choice: [], value: [], bits: [], reward: [], duration: [] };
  episode.turns.forEach((turn, t) => {
    turn.ids.forEach((_, j) => {
      flat.turn.push(t);
      flat.choice.push(Boolean(turn.choice[j]));
      flat.value.push(turn.value[j] ?? 0);
      flat.bits.push(Math.max(0, (turn.entropy ? turn.entropy[j] ?? 0 : 0) / Math.LN2));
    });
    flat.reward.push(turn.reward ?? 0);
    flat.duration.push(turn.duration);
  });
  flat.bootstrap = episode.ending === "terminated" ? 0 : episode.bootstrap ?? 0;
  flat.ended = episode.ending !== "unfinished";
  return flat;
}

/* Which tokens are decisions: the root of a turn, all of its tokens, or its real choices (its root
   where it has none). */
function slotsOf(flat, method) {
  const chosen = new Set(flat.turn.filter((_, i) => flat.choice[i]));  // turns with a real choice
  return flat.turn.map((t, i) => {
    const root = flat.turn[i - 1] !== t;
    if (method.decision === "turn") return root;
    if (method.slots === "tokens") return true;
    return flat.choice[i] || (root && !chosen.has(t));
  });
}

/* Replace every null among the rates by the method's own. */
function ratesOf(method, dials) {
  const fades = method.gamma_token === null;
  const uses = method.uses_critic;
  const lamToken = dials.lam_token ?? (fades ? dials.lam : 1);
  return {
    gamma: dials.gamma,
    gammaToken: dials.gamma_token ?? method.gamma_token ?? dials.gamma,
    lam: uses ? dials.lam : 1,
    lamToken: uses ? lamToken : 1,
    lamActor: uses ? dials.lam_actor ?? lamToken : 1,
    beta: uses ? dials.beta : 1,
    trace: uses ? dials.trace : "token",
  };
}

/* One pass of the recursion, from the last token to the first. `inside` is λ after each slot that
   is not its turn's last. */
function sweep(flat, slot, value, inside, rates, method, dials, bootstrap) {
  const n = flat.turn.length;
  const advantage = new Array(n).fill(0), delta = new Array(n).fill(0);
  let next = -1;      // the next slot
  let lastAhead = 0;  // the value at the last slot of the next turn
  for (let i = n - 1; i >= 0; i--) {
    if (!slot[i]) continue;
    const last = next < 0 || flat.turn[next] !== flat.turn[i];
    const cut = last && next < 0;
    const ahead = cut ? bootstrap : last && method.next_value === "last" ? lastAhead : value[next];
    const steps = dials.by_duration ? flat.duration[flat.turn[i]] : 1;
    const discount = last ? rates.gamma ** steps : rates.gammaToken;
    const trace = cut ? 0 : last ? rates.lam : inside[i];
    delta[i] = (last ? flat.reward[flat.turn[i]] : 0) + discount * ahead - value[i];
    advantage[i] = delta[i] + (cut ? 0 : discount * trace * advantage[next]);
    if (last) lastAhead = value[i];
    next = i;
  }
  return { advantage, delta };
}

/* Credit of every token: {advantage, delta, target, mask, slot}, an entry for each token. */
function credit(flat, method, dials) {
  const rates = ratesOf(method, dials), slot = slotsOf(flat, method);
  const value = flat.value.map((v) => (method.uses_critic ? v : 0));
  const bootstrap = method.uses_critic ? flat.bootstrap : 0;
  const run = (values, inside) =>
    sweep(flat, slot, values, inside, rates, method, dials, bootstrap);
  const judged = run(value, value.map(() => rates.lamToken));
  let policy = judged;
  const perTurn = method.decision === "turn";
  const same = rates.beta === 1 && rates.lamActor === rates.lamToken
    && (rates.trace === "token" || rates.lamToken === 1);
  if (!perTurn && !same) {
    let root = 0;
    const shrunk = value.map((v, i) => {
      if (flat.turn[i - 1] !== flat.turn[i]) root = v;
      return root + rates.beta * (v - root);
    });
    let bits = 0;  // of the decision at the next slot
    const inside = new Array(value.length);
    for (let i = value.length - 1; i >= 0; i--) {
      inside[i] = rates.trace === "bit" ? rates.lamActor ** bits : rates.lamActor;
      if (slot[i]) bits = flat.bits[i];
    }
    policy = run(shrunk, inside);
  }
  const earned = perTurn ? spread(flat, policy.advantage) : policy.advantage;
  const mask = flat.choice.map((c) => c && (method.uses_critic || flat.ended));
  return {
    advantage: earned.map((a, i) => (mask[i] ? a : 0)),
    delta: policy.delta,
    target: judged.advantage.map((a, i) => (slot[i] && method.uses_critic ? a + value[i] : 0)),
    learns: slot.map((s) => s && method.uses_critic),
    mask, slot,
  };
}

/* Give the root's advantage to every token of its turn. */
function spread(flat, advantage) {
  let root = 0;
  return advantage.map((a, i) => {
    if (flat.turn[i - 1] !== flat.turn[i]) root = a;
    return root;
  });
}

globalThis.poad = { ...globalThis.poad, layOut, credit };
