// The OpenAPI document as a page.
import { get } from './api.js';

const node = (name, text, ...children) => {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
};

function schema(value, all, depth = 0) {
  const named = value?.$ref?.split('/').at(-1);
  if (named) return depth > 3 ? named : schema(all[named], all, depth + 1);
  if (value?.properties) return Object.fromEntries(Object.entries(value.properties).map(([k, v]) => [k, schema(v, all, depth + 1)]));
  if (value?.anyOf) return value.anyOf.map(v => schema(v, all, depth + 1));
  if (value?.items) return [schema(value.items, all, depth + 1)];
  return value?.enum?.join(' | ') ?? value?.const ?? value?.format ?? value?.type ?? 'any';
}

try {
  const api = await get('v1/openapi.json');
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, what] of Object.entries(methods)) {
      const parts = [node('summary', '', node('b', method.toUpperCase()), node('code', path)), node('p', what.description)];
      for (const p of what.parameters ?? []) {
        parts.push(node('div', '', node('code', p.name), ` in ${p.in}, ${JSON.stringify(schema(p.schema, api.components.schemas))} `, node('small', p.description)));
      }
      for (const [type, body] of Object.entries(what.requestBody?.content ?? {})) {
        parts.push(node('p', `Body, ${type}:`), node('pre', JSON.stringify(schema(body.schema, api.components.schemas), null, 2)));
      }
      document.getElementById('paths').append(node('details', '', ...parts));
    }
  }
} catch (error) {
  document.getElementById('paths').textContent = error.message;
}
