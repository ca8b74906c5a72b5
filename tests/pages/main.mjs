// Usage: node main.mjs URL, of a running development environment.

import { visiting } from "./browser.mjs";
import { consoleVisits } from "./console.mjs";
import { firstPage, keysAreForThisMachine, reference } from "./reference.mjs";

await visiting(process.argv[2], [firstPage, keysAreForThisMachine, reference, ...consoleVisits]);
