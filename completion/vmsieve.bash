# SPDX-License-Identifier: Apache-2.0
# bash completion for vmsieve

_vmsieve_json_field() { # _vmsieve_json_field NAME: values of "NAME": "..." in the JSON on stdin
  sed -n "s/^ *\"$1\": \"\\(.*\\)\",\\{0,1\\}\$/\\1/p"
}

_vmsieve() {
  local cur prev command="" word
  cur="${COMP_WORDS[COMP_CWORD]}"
  prev="${COMP_WORDS[COMP_CWORD - 1]}"
  local commands="ls inspect save watch untrack restore export import log show verify rm disk"
  for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    if [[ " $commands " == *" $word "* ]]; then
      command="$word"
      break
    fi
  done
  if [[ -z "$command" ]]; then
    COMPREPLY=($(compgen -W "$commands --help --version" -- "$cur"))
    return
  fi
  case "$prev" in
    --store | --qemu | --qmp | --output)
      COMPREPLY=($(compgen -f -- "$cur"))
      return
      ;;
    --format)
      COMPREPLY=($(compgen -W "qemu qemu-mapped-ram libvirt raw elf" -- "$cur"))
      return
      ;;
    --disk)
      COMPREPLY=($(compgen -W "snapshot internal copy none" -- "$cur"))
      return
      ;;
    --disk-folder)
      COMPREPLY=($(compgen -d -- "$cur"))
      return
      ;;
    --compress)
      COMPREPLY=($(compgen -W "none lz4 zstd zstd:3 zstd:19" -- "$cur"))
      return
      ;;
  esac
  local options="--json --quiet --help"
  case "$command" in
    inspect) options+=" --pages --pause --svg --png --largest --threads" ;;
    disk) options+=" --store" ;;
    save) options+=" --store --disk --disk-folder --quiesce --quiesce-limit --live --paused --incremental --longest-wait --full --compress --no-introspection --omit --threads --buffer-mib" ;;
    watch) options+=" --store --disk --disk-folder --disk-temporary --quiesce --quiesce-limit --every --keep --restart --dead-after --set --qemu --disks-as-they-are --longest-wait --compress --no-introspection --omit --threads --buffer-mib" ;;
    restore) options+=" --store --disk-folder --disk-temporary --instead --lazy --eager --wait --clone --foreground --stopped --disks-as-they-are --qemu --qmp --set --threads" ;;
    export) options+=" --store --format --output --xml --threads" ;;
    import) options+=" --store --stopped --longest-wait --compress --no-introspection --omit --threads --buffer-mib" ;;
    log | verify | rm) options+=" --store" ;;
    show) options+=" --store --pages --memory --svg --png --largest" ;;
  esac
  if [[ "$cur" == -* ]]; then
    COMPREPLY=($(compgen -W "$options" -- "$cur"))
    return
  fi
  case "$command" in
    restore | export | show | verify | rm)
      COMPREPLY=($(compgen -W "$(vmsieve log --json 2>/dev/null | _vmsieve_json_field checkpoint)" -- "$cur"))
      ;;
    import) COMPREPLY=($(compgen -f -- "$cur")) ;;
    disk)
      COMPREPLY=($(compgen -W "flatten tidy $(vmsieve ls --json 2>/dev/null | _vmsieve_json_field name)" -- "$cur") $(compgen -f -- "$cur"))
      ;;
    inspect | save | watch | untrack)
      COMPREPLY=($(compgen -W "$(vmsieve ls --json 2>/dev/null | _vmsieve_json_field name)" -- "$cur") $(compgen -f -- "$cur"))
      ;;
  esac
}
complete -F _vmsieve vmsieve
