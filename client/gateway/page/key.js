// The dialog that asks for an API key, where the server wants one.

/** Show it with the server's sentence; resolves with the key, or null if the visitor gives none. */
export function askForKey(reason) {
  const dialog = document.getElementById("key-dialog");
  const input = document.getElementById("key");
  document.getElementById("key-reason").textContent = reason;
  document.getElementById("key-cancel").onclick = () => dialog.close("");
  dialog.querySelector("form").onsubmit = () => (dialog.returnValue = "given");
  dialog.returnValue = "";
  input.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "" ? null : input.value.trim()), { once: true });
  });
}
