// The page of `steadfast serve` in headless Chromium, at the width of a desk and of a phone, in English and Japanese.
//     NODE_PATH=...node_modules node tests/golden/service_page.mjs ADDRESS TOKEN PICTURE BROKEN [SCREENSHOTS]
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { join } from "node:path";

const { chromium } = createRequire(import.meta.url)("playwright-core");
const [address, token, picture, broken, screenshots] = process.argv.slice(2);
const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });

for (const [name, viewport, locale] of [
    ["desk", { width: 1280, height: 900 }, "en-US"],
    ["phone", { width: 390, height: 844 }, "ja-JP"],
]) {
    const context = await browser.newContext({ viewport, locale });
    const page = await context.newPage();
    const errors = [];
    page.on("pageerror", (error) => errors.push(error.message));
    const foreign = [];
    page.on("request", (request) => {
        if (!request.url().startsWith(address) && !request.url().startsWith("blob:")) foreign.push(request.url());
    });
    await page.goto(address);
    // Without the token nothing is shown, and it is asked for.
    await page.waitForSelector("#token-row:not([hidden])");
    await page.fill("#token", token);
    await page.dispatchEvent("#token", "change");
    await page.waitForFunction(() => document.querySelector("#bundle").textContent !== "");
    const before = await page.locator("#parts li").count();
    await page.setInputFiles("#files", [picture, broken]);
    await page.waitForFunction((before) => document.querySelectorAll("#parts li").length === before + 1, before);
    await page.waitForFunction(() => document.querySelector("#said").textContent.includes("broken.png"));
    const first = page.locator("#parts li").first();
    await first.locator("img").nth(1).waitFor();
    // What the network sees and where it looks are there.
    await page.waitForFunction(() => [...document.querySelectorAll("#parts li:first-child img")]
        .every((image) => image.complete && image.naturalWidth > 0));
    assert.equal(await first.locator("img").count(), 2);
    assert.ok((await first.locator("meter").count()) >= 2, "class shares");
    const japanese = locale === "ja-JP";
    assert.equal(await page.getAttribute("html", "lang"), japanese ? "ja" : "en");
    const verdict = await first.locator(".verdict").textContent();
    assert.ok((japanese ? ["合格", "不合格", "要確認"] : ["pass", "reject", "unclear"]).includes(verdict), verdict);
    const counts = (await page.locator("#counts b").allTextContents()).map(Number);
    assert.equal(counts.reduce((sum, count) => sum + count, 0), before + 1);
    const width = await page.evaluate(() => document.documentElement.scrollWidth);
    assert.ok(width <= viewport.width, `${name}: ${width} pixels wide`);
    // A picture from the clipboard is inspected too.
    await page.evaluate(async (url) => {
        const transfer = new DataTransfer();
        const blob = await (await fetch(url, { headers: { Authorization: `Bearer ${document.querySelector("#token").value}` } })).blob();
        transfer.items.add(new File([blob], "pasted.png", { type: "image/png" }));
        document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer }));
    }, `${address}/v1/parts/${before + 1}/image`);
    await page.waitForFunction((count) => document.querySelectorAll("#parts li").length === count, before + 2);
    assert.equal(await page.locator("#parts li .name").first().textContent(), "pasted.png");
    if (screenshots) await page.screenshot({ path: join(screenshots, `${name}.png`), fullPage: true });
    await page.selectOption("#language", japanese ? "en" : "ja");
    assert.equal(await page.getAttribute("html", "lang"), japanese ? "en" : "ja");
    assert.deepEqual([errors, foreign], [[], []]);
    await context.close();
}
await browser.close();
