"""Many recipes of training small networks at once, on one GPU by CUDA graphs: the ablations of docs/results.md.

    python benches/pytorch/recipes.py FOLDER GRID.jsonl OUT.jsonl SECONDS AT_ONCE

FOLDER holds NAME.npz with x, y (training images [n, 1, h, w] as bytes, labels) and xt, yt (test); GRID.jsonl has a dictionary of
settings per line, those of DEFAULTS where it has none. `data` may end in ":0.1" for a tenth of the training images; `save` keeps the
weights under a name that `init` of a later line takes. A fifth of the training images, the same for every line, validates: balanced
accuracy as they are, and under 20 steps of PGD by cross-entropy and again by margin. No checkpoint is chosen; the last counts.
"""

import json
import math
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

DEV = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True

DEFAULTS = dict(
    data="neu64",
    eps=8,
    method="pgd",
    k=3,
    step=0.5,
    beta=6.0,
    epochs=40,
    batch=32,
    opt="adamw",
    lr=2e-3,
    wd=0.05,
    ls=0.1,
    flip=1,
    rot=1,
    shift=0,
    light=0.0,
    noise=0.0,
    balance=0.0,
    ramp=0.0,
    ema=0.0,
    awp=0.0,
    cleaninit=0,
    width=16,
    stem="5s2",
    blocks=1,
    seed=0,
    bnattack="train",
    sched="onecycle",
    start=1.0,
    lossw=0.0,
    init="",
    save="",
    frac=1.0,
)
SAVED = {}


class Block(nn.Module):
    def __init__(self, i, o, stride):
        super().__init__()
        self.c1 = nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.b1 = nn.BatchNorm2d(o)
        self.c2 = nn.Conv2d(o, o, 3, 1, 1, bias=False)
        self.b2 = nn.BatchNorm2d(o)
        self.short = (
            nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))
            if (stride > 1 or i != o)
            else nn.Identity()
        )

    def forward(self, x):
        return F.relu(self.b2(self.c2(F.relu(self.b1(self.c1(x))))) + self.short(x))


class Net(nn.Module):
    def __init__(self, c, classes, w, stem, blocks):
        super().__init__()
        k, st = {"5s2": (5, 2), "3s1": (3, 1), "7s2": (7, 2), "3s2": (3, 2), "5s4": (5, 4)}[stem]
        self.stem = nn.Sequential(nn.Conv2d(c, w, k, st, k // 2, bias=False), nn.BatchNorm2d(w), nn.ReLU())
        ls, i = [], w
        for stage in range(4):
            for b in range(blocks):
                o = w << stage
                ls.append(Block(i, o, 2 if (stage and not b) else 1))
                i = o
        self.body = nn.Sequential(*ls)
        self.head = nn.Linear(i, classes)

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def load(name):
    name, _, frac = name.partition(":")
    z = np.load(f"{sys.argv[1]}/{name}.npz")
    r = np.random.RandomState(0)
    x, y = z["x"], z["y"]
    if x.shape[-1] == 32:
        x = x.repeat(2, 2).repeat(2, 3)
        z = dict(z, xt=z["xt"].repeat(2, 2).repeat(2, 3))
    perm = r.permutation(len(x))
    val = []
    for c in range(y.max() + 1):
        m = perm[y[perm] == c]
        val += list(m[: max(1, round(len(m) * 0.2))])
    mask = np.zeros(len(x), bool)
    mask[val] = True
    if frac:
        tr = [i for i in perm if not mask[i]]
        keep = []
        for c in range(y.max() + 1):
            m = [i for i in tr if y[i] == c]
            keep += m[: max(2, round(len(m) * float(frac)))]
        k = np.zeros(len(x), bool)
        k[keep] = True
        t = lambda a: torch.from_numpy(a).to(DEV)
        return dict(
            train=(t(x[k]), t(y[k])),
            val=(t(x[mask]), t(y[mask])),
            test=(t(z["xt"]), t(z["yt"])),
            classes=int(y.max()) + 1,
        )
    t = lambda a: torch.from_numpy(a).to(DEV)
    return dict(
        train=(t(x[~mask]), t(y[~mask])),
        val=(t(x[mask]), t(y[mask])),
        test=(t(z["xt"]), t(z["yt"])),
        classes=int(y.max()) + 1,
    )


def ce(logits, y, ls, classes, w=None):
    lp = F.log_softmax(logits, 1)
    q = torch.full_like(lp, ls / classes).scatter_(1, y[:, None], 1 - ls + ls / classes)
    l = -(q * lp).sum(1)
    return l.mean() if w is None else (l * w[y]).sum() / w[y].sum()


class Run:
    def __init__(self, cfg, data):
        self.c = c = {**DEFAULTS, **cfg}
        self.d = data[c["data"]]
        torch.manual_seed(c["seed"])
        x, y = self.d["train"]
        self.K = self.d["classes"]
        self.net = Net(x.shape[1], self.K, c["width"], c["stem"], c["blocks"]).to(DEV)
        if c["init"]:
            sd = {k: v for k, v in SAVED[c["init"]].items() if not k.startswith("head")}
            self.net.load_state_dict(sd, strict=False)
        self.n = len(x)
        self.steps = self.n // c["batch"]
        self.total = self.steps * c["epochs"]
        self.params = [p for p in self.net.parameters()]
        self.decay = [p.ndim > 1 for p in self.params]
        self.m = [torch.zeros_like(p) for p in self.params]
        self.v = [torch.zeros_like(p) for p in self.params]
        self.grads = [torch.zeros_like(p) for p in self.params]
        self.idx = torch.zeros(c["batch"], dtype=torch.long, device=DEV)
        self.lr = torch.zeros((), device=DEV)
        self.eps = torch.zeros((), device=DEV)
        self.bc1 = torch.ones((), device=DEV)
        self.bc2 = torch.ones((), device=DEV)
        self.tr = self.params + [b for n, b in self.net.named_buffers() if "running" in n]
        self.avg = [p.detach().clone() for p in self.tr] if c["ema"] else None
        self.rng = np.random.RandomState(c["seed"] + 1)
        counts = np.bincount(y.cpu().numpy(), minlength=self.K)
        self.yc = y.cpu().numpy()
        p = (1 / counts[self.yc]) ** c["balance"]
        self.p = p / p.sum()
        self.w = None
        if c["lossw"]:
            w = (1 / counts) ** c["lossw"]
            self.w = torch.tensor(w / w.mean(), dtype=torch.float32, device=DEV)
        self.graphs = {}
        self.i = 0
        self.stream = torch.cuda.Stream() if DEV.type == "cuda" else None
        self.bns = [m for m in self.net.modules() if isinstance(m, nn.BatchNorm2d)]

    def augment(self, x):
        c, b = self.c, len(x)
        x = x.float() / 255
        r = lambda: torch.rand(b, 1, 1, 1, device=DEV)
        if c["flip"]:
            x = torch.where(r() < 0.5, x.flip(3), x)
            if c["rot"]:
                x = torch.where(r() < 0.5, x.flip(2), x)
        if c["rot"]:
            x = torch.where(r() < 0.5, x.transpose(2, 3), x)
        if c["shift"]:
            p = c["shift"]
            h, w = x.shape[2:]
            xp = F.pad(x, (p,) * 4, mode="reflect")
            dy = torch.randint(0, 2 * p + 1, (b,), device=DEV)
            dx = torch.randint(0, 2 * p + 1, (b,), device=DEV)
            rows = (torch.arange(h, device=DEV)[None] + dy[:, None])[:, None, :, None].expand(
                b, x.shape[1], h, xp.shape[3]
            )
            xp = xp.gather(2, rows)
            cols = (torch.arange(w, device=DEV)[None] + dx[:, None])[:, None, None, :].expand(b, x.shape[1], h, w)
            x = xp.gather(3, cols)
        if c["light"]:
            x = (x * (1 + c["light"] * (2 * r() - 1)) + c["light"] * (r() - 0.5)).clamp(0, 1)
        if c["noise"]:
            x = (x + c["noise"] * r() * torch.randn_like(x)).clamp(0, 1)
        return x

    def one(self, clean):
        c = self.c
        x, y = self.d["train"]
        x = self.augment(x[self.idx])
        y = y[self.idx]
        net = self.net
        eps = self.eps
        if c["bnattack"] == "eval":
            net.eval()
        if not clean:
            k = c["k"]
            a = eps * c["step"]
            adv = (x + c["start"] * eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
            if c["method"] == "trades":
                with torch.no_grad():
                    p0 = F.softmax(net(x), 1)
                adv = x + 0.001 * torch.randn_like(x)
            for _ in range(k):
                adv = adv.detach().requires_grad_()
                out = net(adv)
                l = (
                    F.kl_div(F.log_softmax(out, 1), p0, reduction="sum")
                    if c["method"] == "trades"
                    else ce(out, y, c["ls"], self.K, None) * len(x)
                )
                (g,) = torch.autograd.grad(l, adv)
                adv = adv.detach() + a * g.sign()
                adv = torch.maximum(torch.minimum(adv, x + eps), x - eps).clamp(0, 1)
            adv = adv.detach()
        net.train()

        def loss():
            if clean:
                return ce(net(x), y, c["ls"], self.K, self.w)
            if c["method"] == "trades":
                o = net(torch.cat([x, adv]))
                n = len(x)
                lc = ce(o[:n], y, c["ls"], self.K, self.w)
                return lc + c["beta"] * F.kl_div(F.log_softmax(o[n:], 1), F.softmax(o[:n], 1), reduction="batchmean")
            if c["method"] == "mix":
                o = net(torch.cat([x, adv]))
                n = len(x)
                return c["beta"] * ce(o[:n], y, c["ls"], self.K, self.w) + (1 - c["beta"]) * ce(
                    o[n:], y, c["ls"], self.K, self.w
                )
            return ce(net(adv), y, c["ls"], self.K, self.w)

        if c["awp"] and not clean:
            # one ascent step on the weights, length awp * norm per layer
            gs = torch.autograd.grad(loss(), self.params)
            ds = []
            with torch.no_grad():
                for p, g in zip(self.params, gs):
                    d = g * (c["awp"] * p.norm() / (g.norm() + 1e-12)) if p.ndim > 1 else None
                    ds.append(d)
                    if d is not None:
                        p.add_(d)
            gs = torch.autograd.grad(loss(), self.params)
            with torch.no_grad():
                for p, d in zip(self.params, ds):
                    if d is not None:
                        p.sub_(d)
        else:
            gs = torch.autograd.grad(loss(), self.params)
        with torch.no_grad():
            lr = self.lr
            if c["opt"] == "adamw":
                for p, g, m, v, d in zip(self.params, gs, self.m, self.v, self.decay):
                    m.mul_(0.9).add_(g, alpha=0.1)
                    v.mul_(0.999).addcmul_(g, g, value=0.001)
                    if d:
                        p.mul_(1 - lr * c["wd"])
                    p.sub_(lr * (m / self.bc1) / ((v / self.bc2).sqrt() + 1e-8))
            else:
                for p, g, m, d in zip(self.params, gs, self.m, self.decay):
                    g = g + c["wd"] * p
                    m.mul_(0.9).add_(g)
                    p.sub_(lr * m)
            if self.avg is not None:
                torch._foreach_mul_(self.avg, c["ema"])
                torch._foreach_add_(self.avg, [p.detach() for p in self.tr], alpha=1 - c["ema"])

    def prepare(self):
        """Draws the order of the next epoch and sets scalars of the next step."""
        c = self.c
        e, st = divmod(self.i, self.steps)
        if st == 0:
            o = (
                self.rng.choice(self.n, self.steps * c["batch"], p=self.p)
                if c["balance"]
                else self.rng.permutation(self.n)[: self.steps * c["batch"]]
            )
            self.order = torch.from_numpy(o.astype(np.int64)).to(DEV).view(self.steps, -1)
        t = (self.i + 1) / self.total
        if c["sched"] == "onecycle":
            f = min(t / 0.3, (1 - t) / 0.7)
        elif c["sched"] == "cosine":
            f = min(t / 0.05, 0.5 * (1 + math.cos(math.pi * t)))
        self.idx.copy_(self.order[st])
        self.lr.fill_(c["lr"] * max(f, 1e-4))
        ce_ = c["cleaninit"]
        u = (e + st / self.steps - ce_) / max(c["epochs"] - ce_, 1)
        rise = min(1.0, u / c["ramp"]) if c["ramp"] else 1.0
        self.eps.fill_(c["eps"] / 255 * max(rise, 0.0))
        self.bc1.fill_(1 - 0.9 ** (self.i + 1))
        self.bc2.fill_(1 - 0.999 ** (self.i + 1))
        return c["method"] == "clean" or e < ce_

    def step(self):
        clean = self.prepare()
        if DEV.type != "cuda":
            self.one(clean)
        elif clean in self.graphs:
            self.graphs[clean].replay()
        else:
            # a few eager steps count as steps; then capture
            key = ("eager", clean)
            self.graphs[key] = self.graphs.get(key, 0) + 1
            self.one(clean)
            if self.graphs[key] == 3:
                torch.cuda.synchronize()
                g = torch.cuda.CUDAGraph()
                saved = [t.clone() for t in self.state()]
                with torch.cuda.graph(g, stream=self.stream, capture_error_mode="thread_local"):
                    self.one(clean)
                for t, o in zip(self.state(), saved):
                    t.copy_(o)
                torch.cuda.synchronize()
                self.graphs[clean] = g
        self.i += 1

    def state(self):
        return [p.data for p in self.params] + self.m + self.v + [b for b in self.net.buffers()] + (self.avg or [])

    def evaluate(self):
        c, net = self.c, self.net
        if self.avg is not None:
            for p, a in zip(self.tr, self.avg):
                p.data.copy_(a)
        net.eval()
        eps = c.get("evaleps", c["eps"]) / 255
        for p in self.params:
            p.requires_grad_(False)
        res = {}
        for part in ("val", "test"):
            x, y = self.d[part]
            x = x.float() / 255
            with torch.no_grad():
                o = net(x).argmax(1)
            ok = o == y
            rob = ok.clone()
            for r in range(2):
                adv = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
                for i in range(20):
                    adv.requires_grad_()
                    out = net(adv)
                    if r == 0:
                        l = F.cross_entropy(out, y, reduction="sum")
                    else:
                        t = out.gather(1, y[:, None])[:, 0]
                        l = (out.scatter(1, y[:, None], -1e9).max(1)[0] - t).sum()
                    (g,) = torch.autograd.grad(l, adv)
                    adv = adv.detach() + eps / 4 * (1 if i < 12 else 0.25) * g.sign()
                    adv = torch.maximum(torch.minimum(adv, x + eps), x - eps).clamp(0, 1)
                with torch.no_grad():
                    rob &= net(adv).argmax(1) == y
            bal = lambda m: torch.stack([m[y == k].float().mean() for k in range(self.K)])
            pc, pr = bal(ok), bal(rob)
            res[part] = dict(
                clean=ok.float().mean().item(),
                rob=rob.float().mean().item(),
                bclean=pc.mean().item(),
                brob=pr.mean().item(),
                wc=pc.min().item(),
                wr=pr.min().item(),
                top=torch.bincount(o, minlength=self.K).max().item() / len(y),
            )
        for p in self.params:
            p.requires_grad_(True)
        return res


def work(name, cfgs, data, out, deadline, wave):
    t0 = time.time()
    cfgs = list(cfgs)
    w = 0
    while cfgs:
        if time.time() > deadline:
            print("deadline", name, w, len(cfgs))
            return
        tw = time.time()
        now = []
        while cfgs and len(now) < wave and (not cfgs[0].get("init") or cfgs[0]["init"] in SAVED):
            now.append(cfgs.pop(0))
        runs = [Run(c, data) for c in now]
        w += len(now)
        live = list(runs)
        while live:
            for r in live:
                if r.stream is not None:
                    with torch.cuda.stream(r.stream):
                        r.step()
                else:
                    r.step()
            live = [r for r in live if r.i < r.total]
        if DEV.type == "cuda":
            torch.cuda.synchronize()
        tt = time.time() - tw
        for r in runs:
            if r.c["save"]:
                SAVED[r.c["save"]] = {k: v.detach().clone() for k, v in r.net.state_dict().items()}
        for r in runs:
            c = {k: v for k, v in r.c.items() if DEFAULTS.get(k) != v or k in ("data", "eps")}
            out.write(json.dumps(dict(cfg=c, **r.evaluate(), s=tt)) + "\n")
        out.flush()
        print(f"{name} wave {w}: {len(runs)} runs {tt:.1f} s train, {time.time()-tw:.1f} s with eval", flush=True)
        del runs, live


if __name__ == "__main__":
    cfgs = [json.loads(line) for line in open(sys.argv[2])]
    out = open(sys.argv[3], "a")
    limit = float(sys.argv[4])
    wave = int(sys.argv[5])
    data = {n: load(n) for n in {**{c.get("data", "neu64"): 1 for c in cfgs}}}
    work("lab", cfgs, data, out, time.time() + limit, wave)
