// Hands a file to the server as text: {name, size, data: base64}. A file that is too large is not
// read; the server says so.
const send = (file) => {
  if (!file) return;
  const hand = (data) => {
    props.value = JSON.stringify({ name: file.name, size: file.size, data });
    trigger("input");
  };
  if (file.size > props.most) return hand("");
  const reader = new FileReader();
  reader.onload = () => hand(reader.result.slice(reader.result.indexOf(",") + 1));
  reader.readAsDataURL(file);
};
element.addEventListener("change", (event) => {
  send(event.target.files[0]);
  event.target.value = ""; // the same file can be chosen again
});
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  element.addEventListener(name, (event) => {
    event.preventDefault();
    element.classList.toggle("over", name === "dragenter" || name === "dragover");
    if (name === "drop") send(event.dataTransfer.files[0]);
  });
}
