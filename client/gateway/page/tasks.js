// The list of tasks: what the server can do, in groups, each with a line and a thumbnail.

/** Fill the form with the server's tasks. @param {HTMLFormElement} form */
export function showTasks(form, tasks) {
  const groups = new Map();
  for (const task of tasks) groups.set(task.group, [...(groups.get(task.group) ?? []), task]);
  const chosen = chosenTask(form, tasks) ?? tasks[0];
  form.replaceChildren(
    ...[...groups].map(([name, members]) => {
      const group = document.createElement("fieldset");
      const legend = document.createElement("legend");
      legend.textContent = name;
      group.append(legend, ...members.map((task) => choice(task, task === chosen)));
      return group;
    }),
  );
}

/** The task whose radio button is on, if there is one. */
export function chosenTask(form, tasks) {
  const name = new FormData(form).get("task");
  return tasks.find((task) => task.name === name);
}

function choice(task, isChosen) {
  const label = document.createElement("label");
  label.className = "task";

  const radio = document.createElement("input");
  radio.type = "radio";
  radio.name = "task";
  radio.value = task.name;
  radio.checked = isChosen;

  const words = document.createElement("span");
  words.className = "words";
  const title = document.createElement("b");
  title.textContent = task.title;
  const line = document.createElement("span");
  line.className = "muted small";
  line.id = `task-${task.name}`;
  line.textContent = task.description;
  words.append(title, line);

  label.append(thumbnail(task), radio, words);
  return label;
}

/** The example before on the left half, after on the right. */
function thumbnail(task) {
  const thumb = document.createElement("span");
  thumb.className = "thumb";
  for (const which of task.example ? ["before", "after"] : []) {
    const image = document.createElement("img");
    image.src = task.example[which].replace(/^\//, "");
    image.alt = "";
    image.className = which;
    thumb.append(image);
  }
  return thumb;
}
