# Fills one text template of this folder: replaces each `@name@` with the value of that name.
{ lib }:
template: values:
lib.removeSuffix "\n" (
  lib.replaceStrings (map (name: "@${name}@") (lib.attrNames values)) (lib.attrValues values) (
    lib.readFile (./. + "/${template}")
  )
)
