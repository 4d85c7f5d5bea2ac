{{- define "dialog-operator.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "dialog-operator.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "dialog-operator.labels" -}}
{{ include "dialog-operator.selector" . }}
app.kubernetes.io/component: operator
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "dialog-operator.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "dialog-operator.fullname" .) -}}
{{- end -}}

{{/* The reference of one image: (dict "root" $ "name" NAME "override" REFERENCE). */}}
{{- define "dialog-operator.image" -}}
{{- if .override -}}
{{- .override -}}
{{- else -}}
{{- $values := .root.Values.image -}}
{{- $repository := required "image.repository is not set: say where the images are, for example `--set image.repository=registry.example.com/dialog` for registry.example.com/dialog/operator, .../postgres and .../dialog-api (images/ in the sources has their Dockerfiles)" $values.repository -}}
{{- printf "%s/%s:%s" (trimSuffix "/" $repository) .name ($values.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}
