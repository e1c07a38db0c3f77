# Takes from a forge's swagger.v1.json what the test of calls needs, a line for
# each operation, tab-separated: method, path, query parameters, body fields.
#   jq -r -f derive.jq swagger.v1.json | LC_ALL=C sort > VERSION.tsv
. as $doc
| ( .paths | to_entries[] | .key as $path
    | .value | to_entries[] | .key as $method
    | (.value.parameters // []) as $params
    | [ ($method | ascii_upcase), $path,
        ([ $params[] | select(.in == "query") | .name ] | unique | join(",")),
        ([ $params[] | select(.in == "body") | .schema
           | if has("$ref") then $doc.definitions[."$ref" | ltrimstr("#/definitions/")] else . end
           | .properties // {} | to_entries[]
           | "\(.key):\(.value.type // "object")" ] | unique | join(",")) ]
    | join("\t") ),
  ( .securityDefinitions | to_entries[] | select(.value.in == "header") | "HEADER\t\(.value.name)\t\t" )
