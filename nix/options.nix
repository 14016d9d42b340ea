# docs/options.md: all options of the modules as Markdown. A text without dependencies, so that a check can
# compare it without a build.
{
  lib,
  pkgs,
  options,
}:
let
  documented = lib.filter (option: option.visible != false && !option.internal) (
    lib.optionAttrSetToDocList options.services.distributedFtp
  );

  # Values are Nix expressions or Markdown.
  value =
    shown:
    if shown._type or null == "literalMD" then
      " ${lib.replaceStrings [ "\n" ] [ " " ] (lib.trim shown.text)}"
    else if lib.hasInfix "\n" shown.text then
      "\n\n  ```nix\n${
        lib.concatMapStrings (line: "  ${line}\n") (lib.splitString "\n" (lib.removeSuffix "\n" shown.text))
      }  ```"
    else
      " `${shown.text}`";
  line = what: shown: "* ${what}:${value shown}\n";

  entry =
    option:
    ''
      ### ${lib.replaceStrings [ "<" ">" ] [ "\\<" "\\>" ] option.name}

      ${lib.trim (option.description.text or option.description)}

      * type: ${option.type}
    ''
    + lib.optionalString (option ? default) (line "default" option.default)
    + lib.optionalString (option ? example) (line "example" option.example);
in
pkgs.writeText "options.md" (
  ''
    # Options of `services.distributedFtp`

    Generated from the modules: `nix build .#options && cp --no-preserve=mode result docs/options.md`.

  ''
  + lib.concatMapStringsSep "\n" entry documented
)
